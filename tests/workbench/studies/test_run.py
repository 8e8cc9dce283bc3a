"""Studies of a small real model, from the command line to the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.workbench import build
from tests.workbench.cli.test_commands import turbovlm_runs
from turbovlm_workbench.metrics.intervals import interval
from turbovlm_workbench.studies.run import Ablation

TIMM = f"timm:{build.TINY}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise, their labels and a checkpoint."""
    folder = tmp_path_factory.mktemp("place")
    build.noise(folder / "images", 6, 160)
    rows = [f"noise{n}.png,{n}" for n in range(6)]
    (folder / "images" / "labels.csv").write_text("\n".join(["file,label", *rows]))
    build.timm_weights(folder / "tiny.safetensors")
    return folder


def ablate(place: Path, *more: object) -> list[object]:
    weights = ["--weights", place / "tiny.safetensors"]
    return ["ablate", TIMM, *weights, "--data", place / "images", "--task", "agreement", *more]


def test_studies_from_start_to_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ablate(
        place, "--study", "components", "schedules", "--out", place / "runs", "--limit", 4,
        "--json", place / "out.json", "--plots", place / "plots",
    )  # fmt: skip
    code, out, err = turbovlm_runs(capsys, *argv)
    assert code == 0, err
    assert "components: which part does what (Table 8)" in out
    assert "schedules: more tokens early, or late" in out
    row = next(line for line in out.splitlines() if line.startswith("A4, S1"))
    assert row.split()[-3:] == ["38.2", "130", "67.6"]
    assert sorted(path.name for path in (place / "plots").iterdir()) == [
        "components.svg", "schedules.svg",
    ]  # fmt: skip
    data = json.loads((place / "out.json").read_text())
    assert (data.pop("kind"), data.pop("command")[:15]) == ("ablate", "turbovlm ablate")
    found = Ablation.from_dict(data)
    assert json.loads(json.dumps(found.to_dict())) == data
    assert (found.examples, found.shape.tokens, found.shape.depth) == (4, 101, 6)
    assert found.unmerged["agreement"] == 1
    components, schedules = found.studies
    # 62.5 % of 100 patches in 6 blocks: r = 10
    assert [arm.tokens for arm in components.arms] == [41] * 6
    assert all(arm.ideal > 1.2 for arm in components.arms)
    assert len({arm.metrics["kl"] for arm in components.arms}) == 6
    early, late = schedules.arms[0], schedules.arms[-1]
    assert early.ideal > late.ideal > 1
    assert early.gaps["kl"][0] == pytest.approx(early.metrics["kl"])
    # intervals of KL, and of its difference to the paper's setting, paired by example
    assert (components.base, schedules.base) == ("A4, S1: R - 6 A", schedules.arms[0].label)
    folders = {path.name.split("-")[0]: path for path in (place / "runs").iterdir()}
    random, r_alone = (kl_of(folders[name]) for name in ("random", "redundancy"))
    paper = next(arm for arm in components.arms if arm.label == components.base)
    assert paper.beside == {}
    assert interval(r_alone) == pytest.approx(components.arms[1].gaps["kl"])
    gap = components.arms[0].beside["kl"][0] - components.arms[1].beside["kl"][0]
    assert gap == pytest.approx(sum(random) / 4 - sum(r_alone) / 4)
    assert components.arms[1].beside["kl"][0] == pytest.approx(
        components.arms[1].metrics["kl"] - paper.metrics["kl"]
    )
    assert "KL [95 %]" in out
    row = next(line for line in out.splitlines() if line.startswith("A2, redundancy R"))
    mean, low, high = components.arms[1].beside["kl"]
    assert f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]" in row
    # one folder a setting: ours and inflection 0 are one
    assert len(list((place / "runs").iterdir())) == 1 + 6 + 4

    # a second command goes on in the same folder
    argv = ablate(place, "--study", "schedules", "--out", place / "runs", "--limit", 4)
    code, again, err = turbovlm_runs(capsys, *argv)
    assert code == 0, err
    assert [line for line in out.splitlines() if line.startswith("inflection")] == [
        line for line in again.splitlines() if line.startswith("inflection")
    ]


def kl_of(folder: Path) -> list[float]:
    """KL of every example of a run."""
    return [json.loads(line)["kl"] for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_accuracy_and_a_drop_ratio_of_ones_own(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "ablate", TIMM, "--weights", place / "tiny.safetensors", "--task", "classification",
        "--data", place / "images" / "labels.csv", "--study", "metric", "--r", 4, "--out",
        place / "labelled", "--json", place / "labelled.json",
    ]  # fmt: skip
    code, out, err = turbovlm_runs(capsys, *argv)
    assert code == 0, err
    assert "top-1" in out
    data = json.loads((place / "labelled.json").read_text())
    arms = data["studies"][0]["arms"]
    assert [arm["setting"] for arm in arms[:2]] == [
        "Merge.paper(r=4, alpha=6.0)", "Merge.paper(r=4, alpha=6.0, metric='query')",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--study", "beta", "--out", "x"], "no study 'beta'"),
        (["--r", "0", "--out", "x"], "--r must be at least 1"),
        (["--limit", "0", "--out", "x"], "--limit must be at least 1"),
        (["--plots", "/proc/x", "--out", "x"], "cannot write --plots /proc/x"),
        (["--json", "/no/such/x.json", "--out", "x"], "cannot write --json"),
    ],
)
def test_mistakes(
    place: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    code, out, err = turbovlm_runs(capsys, *ablate(place, *more))
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
