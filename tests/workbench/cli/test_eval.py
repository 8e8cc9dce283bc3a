"""``turbovlm eval`` as a person runs it: whole command lines, exit codes, stdout and stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.workbench import build
from tests.workbench.cli.test_commands import turbovlm_runs
from turbovlm.config import Merge


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    build.photos(folder / "photos", 3)
    build.timm_weights(folder / "tiny.safetensors")
    rows = ["photo0.jpg,1", "photo2.jpg,2", "sub/photo1.jpg,3"]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    return folder


def words(place: Path, task: str, out: str) -> list[object]:
    data = place / ("photos" if task == "agreement" else "labels.csv")
    model = ["--model", f"timm:{build.TINY}", "--weights", place / "tiny.safetensors"]
    images = [] if task == "agreement" else ["--images", place / "photos"]
    return ["eval", task, *model, "--data", data, *images, "--out", place / out, "--batch", 2]


def test_a_table_and_the_difference_to_another_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = turbovlm_runs(capsys, *words(place, "classification", "unmerged"))
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"classification of timm:{build.TINY}, unmerged, 3 examples"
    assert lines[2].split() == ["metric", "value", "95", "%", "interval"]
    assert [line.split()[0] for line in lines[3:5]] == ["top-1", "top-5"]
    assert lines[-1] == f"predictions: {place / 'unmerged'}"
    code, out, err = turbovlm_runs(
        capsys, *words(place, "classification", "merged"), "--r", 8, "--against",
        place / "unmerged", "--json",
    )  # fmt: skip
    assert code == 0, err
    done = json.loads(out)
    assert done["merge"] == {"kind": "merge", "r": 8}
    unmerged = json.loads((place / "unmerged" / "result.json").read_text())
    mean, low, high = done["difference"]["top1"]
    assert mean == pytest.approx(done["metrics"]["top1"] - unmerged["metrics"]["top1"])
    assert low <= mean <= high
    assert "Traceback" not in err


def test_a_saved_setting_and_a_broken_image(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Merge(r=8, method="redundancy").save(place / "turbo.json")
    (place / "photos" / "zero.png").write_bytes(b"")
    argv = [*words(place, "agreement", "saved"), "--config", place / "turbo.json"]
    code, out, err = turbovlm_runs(capsys, *argv)
    (place / "photos" / "zero.png").unlink()
    assert code == 0, err
    assert out.startswith(
        f"agreement of timm:{build.TINY}, Merge(r=8, method='redundancy'), 4 examples\n"
    )
    assert "1 of 4 examples left out, their images cannot be read:\n  zero.png: " in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--r", 8, "--config", "x.json"], "leave --r, --method and --alpha out"),
        (["--method", "random", "--config", "x.json"], "leave --r, --method and --alpha out"),
        (["--alpha", 2], "--alpha without --r changes nothing"),
        (["--method", "random"], "--method without --r changes nothing"),
        (["--against", "nowhere"], "give the --out of a finished run"),
        (["--config", "missing.json"], "cannot read a configuration from missing.json"),
        (["--r", -1], "r must not be negative"),
        (["--r", 8, "--method", "magic"], "method must be one of turbo"),
        (["--device", "abacus"], "no device 'abacus' here"),
        (["--batch", 0], "--batch must be at least 1"),
        (["--workers", -1], "--workers must not be negative"),
    ],
)
def test_mistakes(
    place: Path, capsys: pytest.CaptureFixture[str], more: list[object], message: str
) -> None:
    code, out, err = turbovlm_runs(capsys, *words(place, "classification", "none"), *more)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert not (place / "none").exists()


def test_a_run_that_another_one_would_mix_into(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert turbovlm_runs(capsys, *words(place, "classification", "mixed"))[0] == 0
    code, _, err = turbovlm_runs(capsys, *words(place, "classification", "mixed"), "--r", 4)
    assert code == 2
    assert "holds a run with another merge" in err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = turbovlm_runs(capsys, "eval", "--help")
    assert code == 0
    assert "turbovlm eval captioning" in out
    assert "accelerate launch" in out
