"""What a notebook shows: tables that hold the values, escaped, in any colours."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import turbovlm
from tests.hosts import denoisers
from tests.hosts.zoo import TIMM, pixels, wild
from tests.language.zoo import LLAVA
from tests.workbench.report.make import report
from tests.workbench.report.test_tune import tuned
from turbovlm import Merge, MergeRestore, VisualTokens
from turbovlm.notebook import html_table
from turbovlm_workbench.compare.sweep import Sweep
from turbovlm_workbench.report.table import bench_cells, headers
from turbovlm_workbench.run.result import Result


class Shown(HTMLParser):
    """The cells of the tables, row by row, the words around them, and the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.around: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        style = dict(attrs).get("style") or ""
        # text and ground are the notebook's own
        assert "color" not in style.replace("border-collapse", "")
        assert "background" not in style
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.around.append(data)


def shown(thing: Any) -> Shown:
    return Shown(thing._repr_html_())


def test_everything_is_escaped() -> None:
    evil = "<script>alert('x')</script> & \"more\""
    found = Shown(html_table(evil, [evil], [[evil], [1]], evil, strong=[1]))
    assert found.rows == [[evil], [evil], ["1"]]
    assert found.around == [evil, evil]
    assert "script" not in found.tags
    assert Shown(html_table("", ["a"], [])).around == []


@pytest.mark.parametrize(
    ("setting", "rows"),
    [
        (Merge(r=8, method="redundancy"), [["r", "8"], ["method", "'redundancy'"]]),
        (Merge.paper(r=(0, 4)), [["r", "(0, 4)"], ["alpha", "6.0"]]),
        (VisualTokens(keep=0.25), [["keep", "0.25"]]),
        (MergeRestore(ratio=0.3), [["ratio", "0.3"]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_settings_show_what_was_chosen(setting: Any, rows: list[list[str]]) -> None:
    found = shown(setting)
    assert found.rows[0] == ["setting", "value"]
    assert all(row in found.rows for row in rows)
    assert found.around == [type(setting).__name__, repr(setting)]


@torch.no_grad()
def test_a_recording_shows_its_records() -> None:
    model = wild(VisionTransformer(**TIMM))
    with turbovlm.applied(model, Merge(r=3)) as run:
        assert shown(run).rows == [["record"], ["nothing yet: run the model first"]]
        model(pixels())
    trace = run.trace
    found = shown(run)
    assert found.rows[0] == ["block", "removed", "tokens left"]
    assert found.rows[1:] == [
        [str(block), "3", str(trace.start - 3 * block)] for block in range(1, len(trace.plans) + 1)
    ]
    assert found.rows == shown(trace).rows


@torch.no_grad()
def test_a_recording_shows_visual_tokens_and_the_tower() -> None:
    model = LLAVA.build().eval()
    with turbovlm.applied(model, Merge(r=2), VisualTokens(keep=9)) as run:
        model(**LLAVA.inputs(2))
    found = shown(run)
    assert ["1", "0", "36", "9"] in [row[:4] for row in found.rows]
    assert ["2", "0", "36", "9"] in [row[:4] for row in found.rows]
    assert ["1", "2", str(run.trace.tokens[0])] in found.rows
    visual = run.visual
    words = f"a prompt of {visual.before} tokens became one of {visual.after}"
    assert words in found.around


@pytest.mark.filterwarnings("ignore::FutureWarning")
@torch.no_grad()
def test_a_recording_shows_the_modules_of_a_denoiser() -> None:
    case = denoisers.unet()
    with turbovlm.applied(case.model, MergeRestore(ratio=0.3)) as run:
        case.step()
    found = shown(run)
    assert found.rows[0] == ["module", "kind", "tokens", "merged"]
    assert [row[0] for row in found.rows[1:]] == [move.name for move in run.moves]
    merged = {int(row[3]) / int(row[2]) for row in found.rows[1:] if row[3] != "0"}
    assert merged
    assert all(0.25 < share <= 0.3 for share in merged)


def test_results_show_their_tables() -> None:
    bench = report()
    found = shown(bench)
    assert found.rows[0] == headers(bench)
    assert found.rows[1:] == [bench_cells(bench, row) for row in bench.rows]
    assert found.around == [f"{bench.task} of {bench.model}", bench.advice]
    sweep = Sweep.of(bench)
    fronts = {row[1] for row in shown(sweep).rows if row[0] == "*"}
    assert fronts == set(sweep.front)
    assert len(shown(sweep).rows) == 1 + len(bench.rows)
    promise = tuned()
    found = shown(promise)
    assert found.rows[0][:4] == ["stage", "setting", "images", "drift"]
    assert promise.chosen is not None
    assert any(row[1] == promise.chosen.name for row in found.rows)
    assert found.around[-1].startswith(f"{promise.chosen.name}: 1.")
    assert "Saved" not in found.around[-1]  # in Python nothing is
    lost = shown(tuned(chosen=None, closest=None, speedup=None))
    assert lost.around[-1].startswith("Nothing is worth it: no setting keeps the promise")


def test_an_evaluation_shows_its_metrics() -> None:
    done = Result(
        task="vqa", model="<m>", merge={"kind": "merge", "r": 16}, examples=50, draws=1, broken={},
        metrics={"vqa": 0.75, "whole": 0.5}, intervals={"vqa": [0.7, 0.8]},
    )  # fmt: skip
    found = shown(done)
    assert found.rows == [
        ["metric", "value", "95 % interval"],
        ["vqa", "0.7500", "[0.7000, 0.8000]"],
        ["whole", "0.5000", ""],
    ]
    assert found.around == ["vqa of <m>, Merge(r=16), 50 examples"]
    done["broken"] = {"a.png": "cut"}
    assert "a.png: cut" in shown(done).around[-1]
