"""`turbovlm demo --vlm`: what the page shows is what the model did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from tests.workbench.cli.test_commands import turbovlm_runs
from turbovlm_workbench.report.vlm import lit_tokens


def test_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("turbovlm_workbench.demo.vlm.SCENES", 4)
    monkeypatch.setattr("turbovlm_workbench.demo.vlm.SHOWN", 2)
    monkeypatch.setattr("turbovlm_workbench.demo.vlm.ROUNDS", 2)
    code, out, err = turbovlm_runs(capsys, "demo", "--vlm", "--json", "demo.json")
    assert code == 0, err
    assert out.splitlines()[-1] == "page: turbovlm-demo-vlm.html"
    data = json.loads(Path("demo.json").read_text())
    assert [side["name"] for side in data["sides"]] == ["196 of 196", "49 of 196", "22 of 196"]
    whole, quarter, ninth = data["sides"]
    assert whole["kept"] == []
    assert [len(kept) for kept in quarter["kept"]] == [49, 49]
    assert [len(kept) for kept in ninth["kept"]] == [22, 22]
    assert whole["right"]["answers"] > 0.6
    assert whole["answers"] != ninth["answers"], "dropping tokens changed nothing"
    page = Path("turbovlm-demo-vlm.html").read_text()
    assert page.count("<img src=") == 2 * 3
    assert data["questions"][0][0][0] in page


def test_two_demonstrations_are_not_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = turbovlm_runs(capsys, "demo", "--vlm", "--generate")
    assert code == 2
    assert "--generate and --vlm are two demonstrations: give one of them" in " ".join(err.split())


def test_lit_tokens() -> None:
    picture = np.full((4, 4, 3), 200, dtype=np.uint8)
    shown = lit_tokens(picture, [1, 2], 2)
    expected = np.array([[50, 200], [200, 50]]).repeat(2, 0).repeat(2, 1)
    assert np.array_equal(shown, expected[..., None].repeat(3, 2))
