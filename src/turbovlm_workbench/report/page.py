"""One HTML file that needs nothing else: table, trade-off plot and merge maps of a bench."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from turbovlm.errors import require
from turbovlm_workbench.compare.rows import BenchReport, BenchRow
from turbovlm_workbench.compare.samples import Sample
from turbovlm_workbench.compare.titles import line_of
from turbovlm_workbench.report.mergemap import merge_map
from turbovlm_workbench.report.plot import trade_off
from turbovlm_workbench.report.table import bench_cells, bench_notes, headers, interval_text
from turbovlm_workbench.settings import keep_of

HERE = Path(__file__).parent


def bench_page(
    report: BenchReport, samples: Sequence[Sample] = (), setting: str = "",
    title: str = "turbovlm", command: str = "",
) -> str:  # fmt: skip
    """The page as HTML: styles, plot and pictures are inside, nothing is fetched.

    Args:
        report: a finished bench.
        samples: images to show with their merge maps.
        setting: name of the setting that ``samples`` were made with.
        title: of the page.
        command: that measured it, if one did.

    Raises:
        MissingExtra: if jinja2 or matplotlib is not installed.
    """
    require("jinja2", "report")
    from markupsafe import Markup

    return render(
        "page.html.j2",
        title=title,
        report=report,
        setting=setting,
        headers=headers(report),
        rows=[_row(report, index) for index in range(len(report.rows))],
        notes=bench_notes(report),
        interval=interval_text(report),
        plot=Markup(trade_off(report)),
        figures=_figures(report),
        samples=[_sample(sample) for sample in samples],
        command=command,
    )


def render(template: str, **values: Any) -> str:
    """A page from one of the templates beside this file, which share their style.

    Raises:
        MissingExtra: if jinja2 is not installed.
    """
    require("jinja2", "report")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["numbered"] = _numbered
    return environment.get_template(template).render(**values)


def _numbered(rows: Sequence[Sequence[str]], strong: int | None = None) -> list[dict[str, Any]]:
    """Rows of cells as `parts.html.j2` takes them, one of them with weight on it."""
    return [
        {"cells": cells, "new": False, "advised": number == strong}
        for number, cells in enumerate(rows)
    ]


def _row(report: BenchReport, index: int) -> dict[str, Any]:
    row, before = report.rows[index], report.rows[max(index - 1, 0)]
    lines = [line_of(r.settings) for r in (before, row)]
    return {
        "cells": bench_cells(report, row),
        "new": lines[0] != lines[1],
        "advised": row.name == report.advised,
    }


def _figures(report: BenchReport) -> list[tuple[str, str]]:
    """Large numbers for the head of the page: of the advised row, none where there is none."""
    row = next((row for row in report.rows if row.name == report.advised), None)
    if row is None:
        return []
    quality = [
        (m.text(row.quality[m.key]), m.title) for m in report.measures if m.better == "higher"
    ]
    return [
        (f"{row.speedup.value:.2f}x", "measured speed"),
        *_tokens(report.rows[0], row),
        *quality[:2],
    ]


def _tokens(whole: BenchRow, row: BenchRow) -> list[tuple[str, str]]:
    """Before and after, where the row changes it."""
    if keep_of(row.settings) is not None:
        return [(f"{whole.visual} → {row.visual}", "visual tokens")]
    return [(f"{whole.tokens} → {row.tokens}", "tokens")]


def _sample(sample: Sample) -> dict[str, str | int | bool]:
    painted = merge_map(sample.picture, sample.owner)
    factor = painted.shape[0] // sample.picture.shape[0]
    patches = sample.owner.size
    return {
        "name": sample.name,
        "picture": data_uri(sample.picture.repeat(factor, 0).repeat(factor, 1), "jpeg"),
        "map": data_uri(painted, "png"),
        "patches": patches,
        "groups": len(np.unique(sample.owner)),
        "unmerged": sample.unmerged,
        "merged": sample.merged,
        "same": sample.same,
    }


def data_uri(picture: NDArray[np.uint8], kind: str) -> str:
    """An image, uint8 (H, W, 3), as a ``data:`` address; ``kind`` is "png" or "jpeg"."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    image.save(buffer, kind, **({"quality": 88} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
