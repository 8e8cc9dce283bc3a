"""``generate``, ``demo --generate`` and ``eval generation`` as a person runs them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.workbench import build
from tests.workbench.cli.test_commands import turbovlm_runs
from tests.workbench.generation.make import BLUE, RED, stable_diffusion
from turbovlm.config import MergeRestore
from turbovlm_lab import painter
from turbovlm_workbench.cli.arguments import join_command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    stable_diffusion(folder / "sd")
    build.photos(folder / "photos", 3)
    (folder / "prompts.txt").write_text(f"{RED}\n{BLUE}\n", encoding="utf-8")
    (folder / "text.png").write_text("no image")
    return folder


def test_generate_from_start_to_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = turbovlm_runs(
        capsys, "generate", place / "sd", "--prompt", RED, "--prompt", BLUE, "--ratio", 0.2, 0.5,
        "--steps", 2, "--rounds", 1, "--seed", 3, "--out",
        place / "grid.png",
    )  # fmt: skip
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["setting", "GFLOPs", "ideal"]
    assert [" ".join(line.split()[:3]) for line in lines[2:4]] == ["turbo 20 %", "turbo 50 %"]
    assert "first call warms up and is not timed" in out
    assert lines[-1] == f"pictures: {place / 'grid.png'}"
    with Image.open(place / "grid.png") as image:
        assert image.format == "PNG"
        assert image.width > 1.5 * image.height  # five columns, two rows


def test_a_floor_above_every_level_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = turbovlm_runs(
        capsys, "generate", place / "sd", "--prompt", RED, "--steps", 2, "--rounds", 1,
        "--min-tokens", 100_000, "--out", place / "floor.png",
    )  # fmt: skip
    assert code == 0, err
    assert "modules with fewer than 100000 visual tokens are left alone." in out
    assert "Nothing was merged: " in out


def test_image_to_image_as_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = turbovlm_runs(
        capsys, "generate", place / "sd", "--prompt", RED, "--image", place / "photos/photo0.jpg",
        "--strength", 0.5, "--steps", 4, "--rounds", 1, "--negative", BLUE, "--size", 48,
        "--guidance", 2, "--out", place / "image.png", "--json",
    )  # fmt: skip
    assert code == 0, err
    data = json.loads(out)
    assert data["size"] == [48, 48]
    assert data["seeds"] == [0]
    assert [side["merge"] for side in data["sides"]] == [
        None,
        MergeRestore(ratio=0.3).to_dict(),
    ]
    assert data["sides"][1]["difference"] > 0, "merging changed nothing"
    assert data["sides"][1]["gmacs"] < data["sides"][0]["gmacs"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ratio", "1.2"], "ratio must be in [0, 0.75], got 1.2"),
        (["--ratio", "-0.1"], "ratio must be in [0, 0.75], got -0.1"),
        (["--ratio", "much"], "--ratio takes numbers, not 'much'"),
        (["--min-tokens", "-1"], "min_tokens must not be negative, got -1"),
        (["--method", "magic"], "method must be one of turbo"),
        (["--image", "{place}/text.png"], "text.png (not an image file: "),
        (["--image", "gone.png"], "cannot read image gone.png"),
        (["--strength", "0.5"], "--strength goes with --image"),
        (["--size", "65"], "--size must be a multiple of 8"),
        (["--prompt", ""], "at least one --prompt with words"),
        (["--seed", "-1"], "--seed must be in 0"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--device", "abacus"], "no device 'abacus' here"),
        (["--out", "grid.jpg"], "--out grid.jpg must end in .png"),
        (["--out", "/no/such/folder/x.png"], "cannot write --out /no/such/folder/x.png"),
    ],
)
def test_mistakes_are_found_before_the_model_is_looked_for(
    place: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    words = [word.format(place=place) for word in more]
    code, out, err = turbovlm_runs(capsys, "generate", "no/model", "--prompt", RED, *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_what_is_no_pipeline(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = turbovlm_runs(capsys, "generate", place / "photos", "--prompt", RED)
    assert code == 2
    assert "holds no pipeline of diffusers" in err
    code, _, err = turbovlm_runs(capsys, "generate", "lab:vqa", "--prompt", RED)
    assert code == 2
    assert "lab:vqa draws nothing: lab:painter does" in err


@pytest.mark.parametrize(
    ("argv", "package", "extra"),
    [
        (["generate", "no/model", "--prompt", RED], "matplotlib", "report"),
        (["generate", "no/model", "--prompt", RED], "diffusers", "diffusion"),
        (["demo", "--generate"], "diffusers", "diffusion"),
        (["demo", "--generate"], "jinja2", "report"),
    ],
)
def test_a_missing_extra(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    package: str,
    extra: str,
) -> None:
    monkeypatch.chdir(place)
    real: Any = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    code, _, err = turbovlm_runs(capsys, *argv)
    assert code == 2
    assert f"pip install 'turbovlm[{extra}]'" in err


def evaluation(place: Path, out: str, *more: object) -> list[object]:
    return [
        "eval", "generation", "--model", place / "sd", "--prompts", place / "prompts.txt",
        "--count", 3, "--steps", 2, "--batch", 2, "--out", place / out, *more,
    ]  # fmt: skip


def test_eval_against_another_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = turbovlm_runs(capsys, *evaluation(place, "plain"))
    assert code == 0, err
    assert out.startswith(f"generation of {place / 'sd'}, unmerged, 3 examples\n")
    assert out.splitlines()[-1] == f"pictures: {place / 'plain'}"
    against = ["--reference", place / "plain", "--features", "lab:captioner"]
    argv = evaluation(place, "half", "--ratio", 0.5, *against, "--clip", "lab:retrieval")
    code, out, err = turbovlm_runs(capsys, *argv)
    assert code == 0, err
    lines = out.splitlines()
    assert "MergeRestore(ratio=0.5)" in lines[0]
    assert [line.split()[0] for line in lines[3:8]] == [
        "FID", "CLIP-score", "difference", "PSNR", "images/s",
    ]  # fmt: skip
    assert "features: lab:captioner, 160 numbers a picture" in out
    MergeRestore(ratio=0.5).save(place / "setting.json")
    argv = evaluation(place, "half", "--config", place / "setting.json", "--json")
    code, out, err = turbovlm_runs(capsys, *argv)
    assert code == 0, err
    assert set(json.loads(out)["metrics"]) == {"images_per_second"}
    code, _, err = turbovlm_runs(capsys, *evaluation(place, "half", "--ratio", 0.3))
    assert code == 2
    assert "holds a run with another merge" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ratio", "0.2", "0.5"], "--ratio takes one value here"),
        (["--ratio", "0.9"], "ratio must be in [0, 0.75]"),
        (["--ratio", "0.2", "--config", "x.json"], "leave --ratio and --method out"),
        (["--config", "gone.json"], "cannot read a configuration from gone.json"),
        (["--features", "lab:captioner"], "FID needs --reference"),
        (["--reference", "gone"], "--reference gone is no folder"),
        (["--prompts", "gone.txt"], "cannot read the prompts in gone.txt"),
        (["--count", "0"], "--count must be at least 1"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--seed", "-1"], "--seed must be in 0"),
        (["--size", "65"], "--size must be a multiple of 8"),
        (["--model", "lab:captioner"], "lab:captioner draws nothing"),
        (
            ["--reference", "{place}/photos", "--features", "a", "--fid-weights", "b.pth"],
            "leave --features out",
        ),
        (["--reference", "{place}/photos", "--features", "lab:vqa"], "lab:vqa writes no captions"),
    ],
)
def test_mistakes_in_eval(
    place: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    words = [word.format(place=place) for word in more]
    code, out, err = turbovlm_runs(capsys, *evaluation(place, "none", *words))
    assert (code, out) == (2, "")
    assert message in err
    assert not (place / "none").exists()


def test_eval_generation_is_one_command_and_eval_another() -> None:
    assert join_command(["eval", "generation", "-h"]) == ["eval generation", "-h"]
    assert join_command(["eval", "vqa"]) == ["eval", "vqa"]
    assert join_command(["generate", "generation"]) == ["generate", "generation"]


@pytest.mark.parametrize(
    ("argv", "example"),
    [
        (["generate"], "turbovlm generate lab:painter"),
        (["eval", "generation"], "turbovlm eval generation --model"),
        (["demo"], "turbovlm demo --generate"),
    ],
)
def test_help_has_examples(
    capsys: pytest.CaptureFixture[str], argv: list[str], example: str
) -> None:
    code, out, _ = turbovlm_runs(capsys, *argv, "--help")
    assert code == 0
    assert example in " ".join(out.split())


@pytest.mark.skipif(not painter.WEIGHTS.is_dir(), reason="the painter is not trained yet")
def test_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("turbovlm_workbench.demo.painter.PROMPTS", 1)
    monkeypatch.setattr("turbovlm_workbench.demo.painter.RATIOS", (0.5,))
    monkeypatch.setattr("turbovlm_lab.painter.STEPS", 4)
    code, out, err = turbovlm_runs(capsys, "demo", "--generate", "--json", "demo.json")
    assert code == 0, err
    assert out.splitlines()[-1] == "page: turbovlm-demo-generate.html"
    data = json.loads(Path("demo.json").read_text())
    assert [side["name"] for side in data["sides"]] == ["unmerged", "turbo 50 %"]
    assert data["sides"][1]["difference"] > 0, "merging changed nothing"
    assert set(data["said"]) == set(data["right"]) == {"unmerged", "turbo 50 %"}
    page = Path("turbovlm-demo-generate.html").read_text()
    assert data["prompts"][0] in page
    assert data["prompts"][0] in out
