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
        (["--r", 8, "--config", "x.json"], "leave --r out"),
        (["--method", "random", "--config", "x.json"], "leave --method out"),
        (["--alpha", 2], "--alpha without --r or --speedup changes nothing"),
        (["--method", "random"], "--method without --r or --speedup changes nothing"),
        (["--r", 8, "--keep", "0.5", "--config", "x.json"], "leave --r and --keep out"),
        (["--keep", "some"], "--keep takes a share such as 0.25, or a number of tokens"),
        (["--keep", "0"], "keep must be at least one token an image, got 0"),
        (["--keep", "1.5"], "keep is a share in (0, 1], got 1.5"),
        (["--speedup", 0.5], "speedup must be at least 1, got 0.5"),
        (["--r", 8, "--speedup", 1.4], "give one of r, ratio and speedup"),
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


def test_fewer_visual_tokens(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Questions, and captions compared with the unmerged model's, of a model of LLaVA's kind."""
    llava = build.llava(tmp_path / "llava")
    photos = sorted(build.noise(tmp_path / "photos", 4).iterdir())
    rows = [{"image": p.name, "question": "word1 word2", "answers": ["word3"]} for p in photos]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {}
    for out, more in {
        "plain": [],
        "few": ["--keep", "3"],
        "both": ["--keep", 0.1, "--r", 8],
    }.items():
        argv = ["eval", "vqa", "--model", llava, "--data", data, "--images", tmp_path / "photos"]
        code, text, err = turbovlm_runs(capsys, *argv, "--out", tmp_path / out, *more, "--json")
        assert code == 0, err
        told = json.loads(text)
        predictions = (tmp_path / out / "predictions.jsonl").read_text().splitlines()
        said[out] = told["merge"], [json.loads(line)["answer"] for line in predictions]
    assert [settings for settings, _ in said.values()] == [
        None,
        {"kind": "visual_tokens", "keep": 3},
        [{"kind": "merge", "r": 8}, {"kind": "visual_tokens", "keep": 0.1}],
    ]
    assert len({tuple(answers) for _, answers in said.values()}) == 3
    (tmp_path / "both.json").write_text(json.dumps(said["both"][0]))
    argv = ["eval", "agreement", "--model", llava, "--data", tmp_path / "photos"]
    code, text, err = turbovlm_runs(
        capsys, *argv, "--config", tmp_path / "both.json", "--out", tmp_path / "agreement"
    )
    assert code == 0, err
    assert "Merge(r=8) and VisualTokens(keep=0.1), 4 examples" in text
    page_holds_what_changed(tmp_path, capsys, {out: answers for out, (_, answers) in said.items()})
    code, text, err = turbovlm_runs(
        capsys, *words(place, "classification", "none"), "--keep", "0.5"
    )
    assert (code, text) == (2, "")
    assert "no vision-language model whose prompt can be shortened in VisionTransformer" in err
    assert not (place / "none").exists()


def page_holds_what_changed(
    folder: Path, capsys: pytest.CaptureFixture[str], answers: dict[str, list[str]]
) -> None:
    """``turbovlm report`` of these runs: commands, differences, outputs that changed, marked."""
    results = [folder / name / "result.json" for name in ("few", "plain", "agreement")]
    code, _, err = turbovlm_runs(capsys, "report", *results, "--out", folder / "report.html")
    assert code == 0, err
    page = (folder / "report.html").read_text()
    few, plain, agreement = page.split("<section ")[1:]
    for section, path in zip((few, plain, agreement), results, strict=True):
        command = json.loads(path.read_text())["command"]
        assert command.startswith("turbovlm eval ")
        assert f'<pre class="command">{command}</pre>' in section
    changed = [a != b for a, b in zip(answers["plain"], answers["few"], strict=True)]
    assert any(changed)
    assert f"{sum(changed)} of 4 outputs differ from those of {folder / 'plain'}" in few
    assert few.count("<figure") == few.count("<dt>unmerged</dt>") == sum(changed)
    assert few.count('<span class="changed">') >= sum(changed)
    assert "difference to unmerged [95 %]" in few
    assert "<figure" not in plain
    assert "of 4 outputs differ from those of the unmerged model" in agreement
    (folder / "few" / "result.json").rename(folder / "few.json")  # away from its predictions
    code, _, err = turbovlm_runs(
        capsys, "report", folder / "few.json", results[1], "--out", folder / "report.html"
    )
    assert code == 0, err
    assert "outputs differ" not in (folder / "report.html").read_text()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = turbovlm_runs(capsys, "eval", "--help")
    assert code == 0
    assert "turbovlm eval captioning" in out
    assert "accelerate launch" in out
