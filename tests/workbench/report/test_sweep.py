from __future__ import annotations

import importlib.util
import io
import re

import pytest
from PIL import Image
from rich.console import Console

from tests.workbench.report.make import report
from turbovlm.errors import MissingExtra
from turbovlm_workbench.compare.sweep import Sweep
from turbovlm_workbench.report.plot import STYLES
from turbovlm_workbench.report.sweep import INK, draw_sweep, sweep_lines, sweep_table

SWEEP = Sweep.of(report())


def test_the_fastest_come_first_and_the_front_is_marked() -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(sweep_table(SWEEP))
    rows = console.export_text().splitlines()
    assert rows[0].startswith("front  setting")
    assert rows[0].rstrip().endswith("accuracy lost")
    names = [re.sub(r"^\*?\s+", "", row).split("   ")[0] for row in rows[1:]]
    assert names == ["turbo r=8", "random r=8", "turbo r=4", "random r=4", "unmerged"]
    assert [row.startswith("*") for row in rows[1:]] == [True, False, True, False, False]
    assert rows[1].rstrip().endswith("0.5 %")


def test_notes_say_what_the_mark_means() -> None:
    text = "\n".join(sweep_lines(SWEEP))
    assert "accuracy lost: accuracy of the unmerged model minus this one's." in text
    assert "no setting is faster and loses less" in text
    assert "share one timing" in text


def test_the_plot_holds_every_method_and_the_front() -> None:
    text = draw_sweep(SWEEP, ".svg").decode()
    assert STYLES["turbo"][0] in text
    assert STYLES["random"][0] in text
    assert STYLES["semantics"][0] not in text
    # the front: one line through its two rows
    (front,) = re.findall(
        rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: {INK}; stroke-width: 1.2[^"]*"', text
    )[:1]
    assert len(re.findall(r"[ML] ", front)) == 2
    assert draw_sweep(SWEEP, ".svg").decode() == text
    assert Image.open(io.BytesIO(draw_sweep(SWEEP, ".png"))).size == (1280, 800)


def test_a_missing_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'turbovlm\[report\]'"):
        draw_sweep(SWEEP, ".svg")
