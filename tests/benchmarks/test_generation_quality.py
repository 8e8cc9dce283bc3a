"""The quality benchmark of generation: its statistics against known answers, and a small run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from turbovlm_lab import painter
from turbovlm_lab.scenes import scene, seed_of_split

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

FOLDER = Path(__file__).parents[2] / "benchmarks" / "generation"
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def features(seed: int, number: int = 40, width: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(number, width)) @ rng.normal(size=(width, width))


def test_frechet_distance_equals_the_textbook(load: Load) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    distance, one, other = load("scoring").Distance, features(0), features(1) + 0.5
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    gap = one.mean(0) - other.mean(0)
    expected = gap @ gap + np.trace(first + second - 2 * linalg.sqrtm(first @ second).real)
    assert distance(one).to(other) == pytest.approx(expected)
    assert distance(other).to(one) == pytest.approx(expected)
    assert distance(one).to(one) == pytest.approx(0, abs=1e-9)
    assert distance(one).to(one + 2.0) == pytest.approx(5 * 2.0**2)
    flat = features(2, number=3)  # fewer pictures than features
    assert distance(flat).to(flat) == pytest.approx(0, abs=1e-6)


def test_bootstrap_samples_draw_the_same_pictures_of_every_method(load: Load) -> None:
    distance, own = load("scoring").Distance(features(0)), features(1)
    drawn = distance.resampled(own, 4)
    assert len(set(drawn)) == 4
    assert np.array_equal(drawn, distance.resampled(own, 4))
    # were other rows drawn, a method that is turbo again would differ from turbo
    assert not np.array_equal(drawn, distance.resampled(own[::-1], 4))


def sheet(scoring: ModuleType, right: list[float], level: int, seed: int) -> Any:
    shape = (len(right), 4, 4, 3)
    exact = np.array([float(r == 1) for r in right])
    return scoring.Sheet(
        np.full(shape, level, np.uint8), np.array(right), exact, features(seed, len(right), 3)
    )


def test_entries_of_known_sheets(load: Load) -> None:
    scoring, summary, methods = load("scoring"), load("summary"), load("methods")
    real, base = sheet(scoring, [1.0] * 4, 9, 0), sheet(scoring, [1.0, 1.0, 0.5, 1.0], 100, 1)
    turbo, tomesd = methods.candidates(["turbo", "tomesd"], [0.3], [{}])
    ours = sheet(scoring, [1.0, 0.5, 0.5, 1.0], 110, 2)
    theirs = sheet(scoring, [0.5, 0.25, 0.25, 1.0], 130, 3)
    entries = summary.summarise(real, base, [(turbo, ours), (tomesd, theirs)], 20)
    assert [(e.label, e.ratio) for e in entries] == [
        ("real scenes", None), ("unmerged", None), ("turbo", 0.3), ("tomesd", 0.3)
    ]  # fmt: skip
    assert entries[1].values["right"] == pytest.approx(3.5 / 4)
    assert entries[1].values["exact"] == pytest.approx(3 / 4)
    assert entries[1].values["fid_real"] > 0
    assert entries[2].values["squared"] == pytest.approx(100)
    assert entries[2].values["psnr"] == pytest.approx(10 * np.log10(255**2 / 100))
    assert entries[2].over_turbo == {}
    over = entries[3].over_turbo
    assert over["right"][0] == pytest.approx(2.0 / 4 - 3.0 / 4 + 0.0)
    assert over["right"][1] <= over["right"][0] <= over["right"][2] <= 0
    assert over["squared"] == pytest.approx((800, 800, 800))
    assert over["times"] == pytest.approx((9, 9, 9), rel=1e-3)
    gap = entries[3].values["fid_real"] - entries[2].values["fid_real"]
    assert over["fid_real"][0] == pytest.approx(gap)
    assert over["fid_real"][1] < gap < over["fid_real"][2]
    lines = load("showing").markdown(entries, 4).splitlines()
    assert lines[2].startswith("| ratio | method | attributes right |")
    assert "| 30% | turbo | 75.0 % | 50.0 % |" in lines[6]
    assert "| 30% | tomesd | 50.0 % (-25.0 [" in lines[7]
    assert "900.0 (+800.0 [+800.0, +800.0])" in lines[7]
    assert lines[6].endswith("| - |")
    assert lines[7].endswith("| 9.00 [9.00, 9.00] |")


def test_the_captioner_reads_real_scenes_of_the_painters_size(load: Load) -> None:
    scenes = [scene(seed_of_split("test", i)) for i in range(4)]
    small = ((painter.shrink([s.image for s in scenes]) + 1) * 127.5).round().byte()
    pictures = small.permute(0, 2, 3, 1).numpy()
    reader = load("scoring").Reader()
    read = reader.sheet(pictures, [s.objects for s in scenes])
    assert read.right.mean() > 0.95
    assert read.features.shape == (4, 160)
    blank = reader.sheet(np.zeros_like(pictures), [s.objects for s in scenes])
    assert blank.right.mean() < 0.6
    assert blank.exact.sum() == 0


def test_a_small_run_goes_on_where_it_stopped(load: Load, tmp_path: Path) -> None:
    torch.manual_seed(0)
    painter.save_painter(painter.build_painter(), tmp_path / "painter", {})
    quality, out = load("quality"), tmp_path / "out"

    def run(*words: str) -> None:
        quality.main(
            f"--painter {tmp_path / 'painter'} --out {out} --prompts 3 --steps 1 --batch 2 "
            f"--samples 2 --show 2 --ratio 0.5 {' '.join(words)}".split()
        )

    run("--method turbo")
    first = (out / "done.jsonl").read_text(encoding="utf-8")
    assert len(first.splitlines()) == 1
    assert json.loads(first)["squared"] > 0
    run("--method turbo random")
    both = (out / "done.jsonl").read_text(encoding="utf-8")
    assert both.startswith(first)
    assert [json.loads(line)["label"] for line in both.splitlines()] == ["turbo", "random"]
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [e["label"] for e in results["results"]] == [
        "real scenes", "unmerged", "turbo", "random"
    ]  # fmt: skip
    assert results["results"][0]["values"]["right"] > 0.9
    assert results["results"][3]["over_turbo"]["squared"][0] != 0
    for name in ("quality.md", "quality.png", "pictures.png"):
        assert (out / name).stat().st_size > 500
    with pytest.raises(SystemExit, match="another task"):
        run("--method turbo --guidance 2")


def test_noise_belongs_to_the_prompt(load: Load) -> None:
    quality = load("quality")
    torch.manual_seed(0)
    pipe = painter.build_painter()
    pipe.set_progress_bar_config(disable=True)
    task = quality.Task("x", 2, 0, "test", 1, 3.0)
    together = task.draw(pipe, 2, lambda n: None)
    alone = task.draw(pipe, 1, lambda n: None)
    assert np.abs(together.astype(int) - alone).max() <= 1
    later = quality.Task("x", 1, 1, "test", 1, 3.0).draw(pipe, 1, lambda n: None)
    assert np.abs(together[1:].astype(int) - later).max() <= 1
    assert np.abs(together[0].astype(int) - together[1]).max() > 1


def test_one_forward_measures_the_guided_prediction(
    load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    forward, methods = load("forward"), load("methods")
    words = "--scenes 3 --time 900 300 --split test --method turbo tomesd --ratio 0.5 --batch 2"
    args = forward.parse(words.split())
    pipe = painter.load_painter()
    found = methods.candidates(args.method, args.ratio, [{}, {"preset": {"restore": "copy"}}])
    values = forward.errors(pipe, found, args)
    assert values.shape == (3, 3, 2)  # tomesd has no other way of restoring
    assert (values > 0).all()
    with torch.no_grad():  # the second scene at the second time by itself
        sight = list(forward.sights(pipe, args))[1]
        assert sight.time == 300
        assert torch.equal(*sight.latent.chunk(2))
        empty, told = pipe.unet(
            sight.latent, 300, encoder_hidden_states=sight.text, return_dict=False
        )[0].chunk(2)
        plain = (empty + painter.GUIDANCE * (told - empty))[1].double()
        found[0].apply(pipe, 1024)
        merged = sight.guided(pipe.unet, painter.GUIDANCE)[1].double()
        found[0].remove(pipe)
    expected = (merged - plain).square().mean() / plain.square().mean()
    assert values[0, 1, 1] == pytest.approx(float(expected), rel=1e-6)
    assert forward.ratio(np.full(5, 3.0), np.full(5, 2.0)) == pytest.approx((1.5, 1.5, 1.5))
    forward.main([*words.split(), "--setting", "{}", '{"preset": {"restore": "copy"}}'])
    told_lines = capsys.readouterr().out
    alone = forward.parse([*words.split(), "--guidance", "1"])
    half = list(forward.sights(pipe, alone))[1]  # without guidance: what was prompted, by itself
    assert torch.equal(half.latent, sight.latent.chunk(2)[1])
    with torch.no_grad():
        torch.testing.assert_close(half.guided(pipe.unet, 1), told)
    assert "turbo restore=copy" in told_lines
    assert "of the first's" in told_lines
