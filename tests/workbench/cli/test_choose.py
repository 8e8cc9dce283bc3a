"""``sweep`` and ``tune`` as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import turbovlm
from tests.workbench import build
from tests.workbench.cli.test_commands import turbovlm_runs
from turbovlm_workbench.tasks.registry import load_task

TIMM = f"timm:{build.TINY}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and two small models."""
    folder = tmp_path_factory.mktemp("place")
    build.noise(folder / "photos", 21)
    build.noise(folder / "few", 4)
    build.vit_classifier(folder / "vit")
    build.timm_weights(folder / "tiny.safetensors")
    rows = [f"noise{index}.png,{index % 7}" for index in range(4)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    return folder


def test_sweep_from_start_to_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = turbovlm_runs(
        capsys, "sweep", place / "vit", "--images", place / "few", "--labels",
        place / "labels.csv", "--method", "turbo", "random", "--r", 4, 8, "--alpha", 1, 3,
        "--inflection", "-0.5", 0, "--batch", 2, "--rounds", 2, "--json", place / "out.json",
        "--plot", place / "front.svg",
    )  # fmt: skip
    assert code == 0, err
    data = json.loads((place / "out.json").read_text())
    assert data["command"].startswith(f"turbovlm sweep {place / 'vit'} --images")
    names = [row["name"] for row in data["rows"]]
    # unmerged, turbo with two weights and shapes, random with two shapes, each with two r
    assert len(names) == len(set(names)) == 1 + 2 * 2 * 2 + 2 * 2
    assert "turbo r=4 inflection=-0.5 alpha=1.0" in names
    shown = [line[7:].split("  ")[0] for line in out.splitlines()[1 : 1 + len(names)]]
    assert sorted(shown) == sorted(names)
    speed = {row["name"]: row["throughput"] for row in data["rows"]}
    assert shown == sorted(shown, key=lambda name: -speed[name])
    assert speed["turbo r=4 alpha=1.0"] == speed["turbo r=4 alpha=3.0"]
    marked = {line[7:].split("  ")[0] for line in out.splitlines() if line.startswith("*  ")}
    assert set(data["front"]) == marked & set(names) != set()
    assert out.splitlines()[-1] == f"plot: {place / 'front.svg'}"
    assert (place / "front.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--alpha", "much"], "--alpha takes numbers, not 'much': --alpha 0.5 1 2"),
        (["--alpha", "-1"], "alpha must not be negative, got -1"),
        (["--inflection", "2"], "inflection must be in [-1, 1], got 2"),
        (["--plot", "x.pdf"], "--plot x.pdf must end in .svg or .png"),
        (["--plot", "/no/such/folder/x.png"], "cannot write --plot /no/such/folder/x.png"),
        (["--images", "gone"], "--images gone does not exist"),
        (["--r", "four"], "--r takes integers, not 'four'"),
        (["--speedup", "fast"], "--speedup takes numbers, not 'fast'"),
        (["--speedup", "0.9"], "speedup must be at least 1, got 0.9"),
        (["--speedup", "1.4", "--inflection", "1"], "--inflection shapes a constant r"),
    ],
)
def test_mistakes_in_a_sweep(
    place: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    argv = ["sweep", place / "vit", "--images", place / "few", *more]
    code, out, err = turbovlm_runs(capsys, *argv)
    assert (code, out) == (2, "")
    assert message in err


def test_tune_from_start_to_end(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    # a machine that saves time, or not: either way the answer fits the exit code and the file
    argv = ["tune", TIMM, "--weights", "tiny.safetensors", "--images", "photos"]
    code, out, err = turbovlm_runs(capsys, *argv, "--max-loss", "60%", "--rounds", 6)
    saved = place / "turbo.json"
    assert "Traceback" not in err
    assert "evaluations" in out
    assert "One of the 14 images weighs" not in out
    if code == 0:
        assert out.splitlines()[-1] == ('turbovlm.apply(model, turbovlm.Merge.load("turbo.json"))')
        model = load_task(TIMM, place / "tiny.safetensors").model
        turbovlm.apply(model, turbovlm.Merge.load(saved))
    else:
        assert code == 1
        assert "Nothing is worth it" in out.splitlines()[-1]
        assert not saved.exists()


def test_nothing_within_the_promise_is_code_1_and_no_file(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build.siglip(place / "siglip")
    code, out, err = turbovlm_runs(
        capsys, "tune", place / "siglip", "--images", place / "photos", "--max-loss", "1e-12",
        "--out", place / "none.json", "--json",
    )  # fmt: skip
    assert code == 1, err
    data = json.loads(out)
    assert data["command"].startswith("turbovlm tune ")
    assert data["settings"] is None
    assert data["max_loss"] == 1e-12
    assert len(data["trials"]) < 48
    assert not (place / "none.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-loss", "1"], "--max-loss takes a share above 0 and below 1, not '1': 1% or 0.01"),
        (["--max-loss", "0%"], "not '0%'"),
        (["--max-loss", "little"], "not 'little'"),
        (["--out", "/no/such/folder/x.json"], "cannot write --out /no/such/folder/x.json"),
        (["--images", "few"], "at least 20 images and got 4"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--labels", "gone.csv"], "no label table gone.csv"),
        (["--keep", "some"], "--keep takes a share such as 0.25, or a number of tokens"),
    ],
)
def test_mistakes_in_a_tune(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(place)
    code, out, err = turbovlm_runs(capsys, "tune", "vit", "--images", "photos", *more)
    assert (code, out) == (2, "")
    assert message in err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = turbovlm_runs(capsys, "sweep", "--help")
    assert code == 0
    assert "turbovlm sweep timm:vit_base_patch16_224 --images photos --r 8 12 16" in out
    for flag in ("--alpha", "--inflection", "--method", "--json", "--plot", "--labels"):
        assert flag in out
    code, out, _ = turbovlm_runs(capsys, "tune", "--help")
    assert code == 0
    assert "turbovlm tune timm:vit_base_patch16_224 --images photos --max-loss 1%" in out
    for flag in ("--max-loss", "--labels", "--batch", "--out", "--json", "--seed"):
        assert flag in out
