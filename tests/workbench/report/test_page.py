from __future__ import annotations

import base64
import dataclasses
import importlib.util
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.workbench.report.make import report, row, sample
from turbovlm.config import Merge
from turbovlm.errors import MissingExtra
from turbovlm_workbench.report.page import bench_page, data_uri
from turbovlm_workbench.report.plot import STYLES, TEXT, by_method, trade_off
from turbovlm_workbench.report.table import bench_cells, bench_notes, bench_table, headers


class Outline(HTMLParser):
    """Counts tags, checks that they close, and collects what would be fetched."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def printed(width: int = 160) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(bench_table(report()))
    return console.export_text()


def test_cells_stand_under_their_headers() -> None:
    whole = report()
    assert dict(zip(headers(whole), bench_cells(whole, whole.rows[2]), strict=True)) == {
        "setting": "turbo r=8",
        "tokens": "101",
        "GFLOPs": "0.90",
        "ideal": "1.40x",
        "images/s": "280 ± 2 %",
        "speed-up": "1.40x [1.35, 1.45]",
        "peak MiB": "27.7",
        "accuracy": "79.5 %",
        "agreement": "95.0 %",
        "KL": "0.0315",
    }
    assert bench_cells(whole, whole.rows[0])[5] == "1.00x"


def test_the_table_has_every_row() -> None:
    text = printed()
    for name in ("unmerged", "turbo r=4", "turbo r=8", "random r=4", "random r=8"):
        assert sum(line.startswith(name + " ") for line in text.splitlines()) == 1
    assert "…" not in text


def test_notes_say_what_was_measured() -> None:
    text = "\n".join(bench_notes(report()))
    assert "500 images" in text
    assert "a cpu, 2 threads" in text
    assert "median of 10 interleaved rounds [95 % interval], against unmerged" in text
    assert "both sides compiled" not in text
    assert "allocator" not in text
    rows = [dataclasses.replace(row, page_faults=21476.0) for row in report().rows]
    assert "one unmerged call faults 21476 pages in" in "\n".join(bench_notes(report(rows=rows)))
    few = "\n".join(bench_notes(report(rounds=2, mode="compiled")))
    assert "[lowest, highest]" in few
    assert "both sides compiled" in few


def test_the_page_needs_nothing_else() -> None:
    text = bench_page(report(), [sample(), sample("a dog")], "turbo r=8")
    outline = Outline(text)
    assert outline.open == []
    assert outline.tags["img"] == 4
    assert outline.tags["svg"] == 1
    assert not {"script", "link", "iframe"} & outline.tags.keys()
    sources = [source for source in outline.sources if not source.startswith("#")]
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_page_shows_the_result() -> None:
    text = bench_page(report(), [sample(), sample("a dog")], "turbo r=8", "A title")
    assert "<title>A title</title>" in text
    assert '<p class="advice">Use turbo r=8.</p>' in text
    assert text.count('<tr class="new') == 2  # one line between the methods
    assert len(re.findall(r'<tr class="[^"]*advised"><td>turbo r=8</td>', text)) == 1
    assert "16 patches, 15 tokens left" in text
    assert '<span class="changed">a cat</span>' in text
    assert text.count("<dd>the same</dd>") == 1
    assert "1.40x" in text
    for cell in bench_cells(report(), report().rows[-1]):
        assert f">{cell}</td>" in text


def test_names_are_escaped() -> None:
    text = bench_page(report(), [sample()])
    assert "timm:some_&lt;model&gt;" in text
    assert "photo &lt;1&gt;" in text
    assert "<model>" not in text


def test_without_advice_or_samples() -> None:
    text = bench_page(report(advised=None))
    assert 'class="figures"' not in text
    assert "What was merged" not in text
    assert 'advised"><td>' not in text


def test_pictures_survive() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    kind, _, content = data_uri(picture, "png").partition(";base64,")
    assert kind == "data:image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), picture)


def test_the_plot_follows_the_page_and_draws_each_method() -> None:
    svg = trade_off(report())
    assert svg.startswith("<svg")
    assert TEXT not in svg
    assert "currentColor" in svg
    drawn = [name for name, (colour, _) in STYLES.items() if colour in svg]
    assert drawn == ["turbo", "random"]
    assert svg == trade_off(report())


def test_one_panel_without_labels() -> None:
    both = trade_off(report())
    one = trade_off(report(measures=report().measures[1:]))
    assert both.count('id="axes_') == 2
    assert one.count('id="axes_') == 1


def test_rows_by_method() -> None:
    groups = by_method(report())
    assert {name: [r.name for r in rows] for name, rows in groups.items()} == {
        "turbo": ["turbo r=4", "turbo r=8"],
        "random": ["random r=4", "random r=8"],
    }


def test_a_single_setting_can_be_drawn() -> None:
    assert trade_off(report(rows=(row(None, 1, 1), row(Merge(r=2), 1.0, 1.0)))).startswith("<svg")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_extras(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    with pytest.raises(MissingExtra, match=rf"{package}.*pip install 'turbovlm\[report\]'"):
        bench_page(report())
