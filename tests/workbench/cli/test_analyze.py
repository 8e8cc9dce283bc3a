"""``turbovlm analyze`` and ``turbovlm show`` as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.workbench import build
from tests.workbench.cli.test_commands import turbovlm_runs
from turbovlm import Merge, VisualTokens
from turbovlm_workbench.analyze.encoder import Analysis

TIMM = f"timm:{build.TINY}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs and a checkpoint."""
    folder = tmp_path_factory.mktemp("place")
    build.photos(folder / "photos", 3)
    build.timm_weights(folder / "tiny.safetensors")
    build.blip(folder / "blip")
    return folder


def test_analyze_from_start_to_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = turbovlm_runs(
        capsys, "analyze", TIMM, "--weights", place / "tiny.safetensors", "--images",
        place / "photos", "--r", 8, "--batch", 2, "--limit", 2, "--json", place / "out.json",
        "--plot", place / "out.png",
    )  # fmt: skip
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:5] == ["block", "redundancy", "top", "quarter", "time"]
    assert [line.split()[0] for line in lines[1:7]] == list("123456")
    assert "means over 2 samples" in out
    data = json.loads((place / "out.json").read_text())
    assert data["kind"] == "analyze"
    assert data["command"].startswith("turbovlm analyze timm:")
    assert data["language"] is None
    found = Analysis.from_dict(data["encoder"])
    assert found.to_dict() == data["encoder"]
    assert [block.tokens for block in found.sides["turbo r=8"]] == [93, 85, 77, 69, 61, 53]
    with Image.open(place / "out.png") as picture:
        assert picture.width > picture.height


def test_a_speed_up_and_a_saved_setting_are_analyzed_alike(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (
        "analyze", TIMM, "--weights", place / "tiny.safetensors", "--images", place / "photos",
        "--batch", 3, "--json", place / "s.json",
    )  # fmt: skip
    found = []
    Merge(speedup=1.4).save(place / "merge.json")
    for more in (("--speedup", 1.4), ("--config", place / "merge.json"), ("--r", 8)):
        code, _, err = turbovlm_runs(capsys, *common, *more)
        assert code == 0, err
        sides = Analysis.from_dict(json.loads((place / "s.json").read_text())["encoder"]).sides
        (merged,) = (blocks for name, blocks in sides.items() if name != "unmerged")
        found.append([block.tokens for block in merged])
    assert found[0] == found[1] != found[2]
    VisualTokens(keep=0.5).save(place / "keep.json")
    code, _, err = turbovlm_runs(capsys, *common, "--config", place / "keep.json")
    assert code == 2
    assert "this command takes one Merge" in err


def test_a_captioner_is_analyzed_by_its_tower(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = turbovlm_runs(
        capsys, "analyze", place / "blip", "--images", place / "photos", "--plot", place / "b.svg"
    )
    assert code == 0, err
    assert "BlipVisionModel" in out
    assert "merge error" not in out.splitlines()[0]
    assert (place / "b.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--alpha", "2"], "--alpha without --r or --speedup changes nothing"),
        (["--r", "4", "--config", "x.json"], "--config is a whole setting"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--plot", "x.gif"], "--plot x.gif must end in .svg or .png"),
        (["--json", "/no/such/folder/x.json"], "cannot write --json"),
    ],
)
def test_mistakes_are_named_before_the_model_is_loaded(
    place: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    code, out, err = turbovlm_runs(
        capsys, "analyze", "timm:gone", "--images", place / "photos", *more
    )
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_show_from_start_to_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [place / "photos" / "photo0.jpg", place / "photos" / "photo2.jpg"]
    code, out, err = turbovlm_runs(
        capsys, "show", TIMM, *pictures, "--weights", place / "tiny.safetensors", "--method",
        "turbo", "random", "--out", place / "maps.webp", "--json", place / "maps.json",
    )  # fmt: skip
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "photo0.jpg"
    assert [line.split(":")[0].strip() for line in lines[1:4]] == [
        "unmerged", "turbo r=8", "random r=8",
    ]  # fmt: skip
    assert lines[-1] == f"picture: {place / 'maps.webp'}"
    with Image.open(place / "maps.webp") as drawn:
        assert drawn.height > 2 * drawn.width / 2
    data = json.loads((place / "maps.json").read_text())
    assert (data["kind"], len(data["pictures"])) == ("show", 2)
    assert data["pictures"][0]["strip"].startswith("data:image/webp;base64,")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--out", "x.pdf"], "--out x.pdf must end in .png, .webp, .gif"),
        (["--keep", "much"], "--keep takes a share such as 0.25"),
        (["--keep", "0"], "keep must be at least one token"),
        (["--r", "-1"], "r must not be negative"),
        (["--method", "best"], "method must be one of"),
        (["gone.jpg"], "cannot read image gone.jpg"),
    ],
)
def test_mistakes_of_show(
    place: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    code, out, err = turbovlm_runs(
        capsys, "show", "timm:gone", place / "photos" / "photo0.jpg", *more
    )
    assert (code, out) == (2, "")
    assert message in err


def test_show_of_a_model_without_visual_tokens(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = turbovlm_runs(
        capsys, "show", TIMM, place / "photos" / "photo0.jpg", "--weights",
        place / "tiny.safetensors", "--keep", "0.25", "--out", tmp_path / "x.png",
    )  # fmt: skip
    assert code == 2
    assert "no vision-language model whose prompt can be shortened" in err
    assert not (tmp_path / "x.png").exists()


def test_a_vision_language_model_shows_its_visual_tokens(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = build.llava(tmp_path / "llava")
    code, out, err = turbovlm_runs(
        capsys, "analyze", model, "--images", place / "photos", "--json", tmp_path / "a.json"
    )
    assert code == 0, err
    assert "LlamaModel: 64 visual tokens a prompt, means over 3 prompts" in out
    layers = json.loads((tmp_path / "a.json").read_text())["language"]["layers"]
    assert all(0 < layer["mass"] < 1 for layer in layers)
    code, out, err = turbovlm_runs(
        capsys, "show", model, place / "photos" / "photo0.jpg", "--keep", "0.25", "--out",
        tmp_path / "kept.png",
    )  # fmt: skip
    assert code == 0, err
    assert "  16 of 64 tokens: " in out
    assert (tmp_path / "kept.png").exists()
