"""``turbovlm flops`` as a person runs it: whole command lines, exit codes, stdout and stderr."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable

import pytest

from turbovlm_workbench.cli import main
from turbovlm_workbench.paper.table import TABLE

pytest.importorskip("timm")
pytest.importorskip("torchvision")

Run = Callable[..., tuple[int, str, str]]
SMALL = "timm:vit_small_patch16_224"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, stdout and stderr of ``turbovlm flops`` with these words."""

    def runs(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main(["flops", *(str(word) for word in argv)])
        out, err = capsys.readouterr()
        code = leaving.value.code
        assert isinstance(code, int)
        return code, out, err

    return runs


@pytest.fixture
def two_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's table without what takes long; tests/tasks/test_paper.py counts all of it."""
    names = ("ImageNet, AugReg ViT-S/16", "ImageNet, SWAG ViT-B/16")
    table = tuple(subject for subject in TABLE if subject.name in names)
    monkeypatch.setattr("turbovlm_workbench.paper.count.TABLE", table)


def test_a_model(run: Run) -> None:
    code, out, err = run(SMALL, "--r", 8, 13, "--method", "turbo", "redundancy")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "VisionTransformer: one image of 224 px"
    assert [line.split() for line in lines[2:8]] == [
        ["setting", "tokens", "GFLOPs", "ideal"],
        ["unmerged", "197", "4.608", "1.00x"],
        ["turbo", "r=8", "101", "3.428", "1.34x"],
        ["turbo", "r=13", "41", "2.712", "1.70x"],
        ["redundancy", "r=8", "101", "3.428", "1.34x"],
        ["redundancy", "r=13", "41", "2.712", "1.70x"],
    ]
    assert "blocks.*.mlp.fc1" in out
    assert "Traceback" not in err


def test_speedups(run: Run) -> None:
    code, out, err = run(SMALL, "--speedup", 1.2, 1.4, "--json")
    assert code == 0, err
    costs = json.loads(out)["costs"]
    assert [cost["name"] for cost in costs[1:]] == ["turbo speedup=1.2", "turbo speedup=1.4"]
    assert [cost["config"] for cost in costs[1:]] == [
        {"kind": "merge", "speedup": 1.2}, {"kind": "merge", "speedup": 1.4}
    ]  # fmt: skip
    assert sum(costs[2]["r"]) == 197 - costs[2]["tokens"]
    code, out, err = run(SMALL, "--speedup", 1.4, "--r", 8)
    assert code == 0, err
    assert [line.split()[:2] for line in out.splitlines()[4:6]] == [
        ["turbo", "r=8"], ["turbo", "speedup=1.4"]
    ]  # fmt: skip
    assert out.splitlines()[-1].startswith("turbo speedup=1.4: r=")


def test_a_model_as_json(run: Run) -> None:
    code, out, _ = run(SMALL, "--size", 64, "--r", 2, "--json")
    assert code == 0
    data = json.loads(out)
    assert data["model"] == SMALL
    assert [cost["name"] for cost in data["costs"]] == ["unmerged", "turbo r=2"]
    assert data["costs"][0]["tokens"] == 17


def test_the_paper(run: Run, two_models: None) -> None:
    code, out, err = run("--paper")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == [
        "model", "r", "published", "exact", "computed", "error", "equal", "ideal", "paper",
        "configuration",
    ]  # fmt: skip
    rows = {line[:27].strip(): line[27:].split() for line in lines if " yes " in line}
    assert rows["ImageNet, SWAG ViT-B/16"] == [
        "-", "-", "55.54", "55.540", "-0.000", "%", "yes", "1.00x", "-", "vit_b_16", "at", "384",
        "px",
    ]  # fmt: skip
    merged = ["45", "-", "28.30", "28.302", "+0.006", "%", "yes", "1.96x", "1.85x"]
    assert merged in [line.split() for line in lines]
    assert lines[-1].startswith("4 of 4 rows are within 0.1% of the exact figure")


def test_the_paper_as_json(run: Run, two_models: None) -> None:
    code, out, _ = run("--paper", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["equal"] is True
    assert [row["r"] for row in data["rows"]] == [0, 13, 0, 45]
    assert set(data["rows"][1]) == {
        "name", "r", "ratio", "published", "exact", "computed", "ideal", "throughput",
        "configuration", "note", "error", "equal",
    }  # fmt: skip
    assert data["rows"][1]["throughput"] == 1.53
    assert data["rows"][1]["computed"] == pytest.approx(2.7116, abs=1e-4)


def test_a_row_that_is_off_gives_exit_code_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = next(subject for subject in TABLE if subject.name.endswith("ViT-S/16"))
    wrong = dataclasses.replace(subject.lines[1], exact=2.75)
    table = (dataclasses.replace(subject, lines=(subject.lines[0], wrong)),)
    monkeypatch.setattr("turbovlm_workbench.paper.count.TABLE", table)
    code, out, _ = run("--paper")
    assert code == 1
    assert " NO " in out
    assert "1 of 2 rows are within 0.1%" in out.splitlines()[-1]
    code, out, _ = run("--paper", "--json")
    assert (code, json.loads(out)["equal"]) == (1, False)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "needs a MODEL, or --paper"),
        (["--paper", SMALL], "leave MODEL, --size, --r, --speedup and --method out"),
        (["--paper", "--r", 8], "leave MODEL, --size, --r, --speedup and --method out"),
        (["--paper", "--speedup", 2], "leave MODEL, --size, --r, --speedup and --method out"),
        ([SMALL, "--speedup", 0.5], "speedup must be at least 1, got 0.5"),
        ([SMALL, "--speedup", 40], "speedup=40 is out of reach for 197 tokens in 12 blocks"),
        ([SMALL, "--speedup", "fast"], "--speedup takes numbers, not 'fast'"),
        (["--paper", "--size", 224], "leave MODEL, --size, --r, --speedup and --method out"),
        ([SMALL, "--r", -1], "r must not be negative, got -1"),
        ([SMALL, "--r", 99], "r=99 does not fit"),
        ([SMALL, "--r", "many"], "--r takes integers, not 'many'"),
        ([SMALL, "--method", "magic"], "method must be one of turbo"),
        ([SMALL, "--size", 0], "at least 1 pixel"),
        (["timm:vit_smal_patch16_224"], "did you mean vit_small_patch16_224"),
        (["timm:resnet18"], "no row describes ResNet"),
    ],
)
def test_mistakes(run: Run, argv: list[object], message: str) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_a_missing_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tuple(subject for subject in TABLE if "Diffusion" in subject.name)
    monkeypatch.setattr("turbovlm_workbench.paper.count.TABLE", table)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "diffusers" else found(name)
    )
    code, out, err = run("--paper")
    assert (code, out) == (2, "")
    assert "pip install 'turbovlm[diffusion]'" in err
