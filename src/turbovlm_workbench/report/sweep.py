"""A sweep for the terminal and as a picture: every setting, and the front that none beats."""

from __future__ import annotations

import io
from typing import Any

from rich.table import Table
from rich.text import Text

from turbovlm.errors import require
from turbovlm_workbench.compare.sweep import Sweep
from turbovlm_workbench.report.plot import PLAIN, by_method, dress, style_of
from turbovlm_workbench.report.table import bench_cells, bench_notes, headers

KINDS = (".svg", ".png")
INK = "#1c1f23"


def sweep_headers(sweep: Sweep) -> list[str]:
    """Titles of the columns."""
    return ["front", *headers(sweep.report), sweep.report.loss.title]


def sweep_cells(sweep: Sweep) -> list[list[str]]:
    """All rows as text, the fastest first; those on the front are marked."""
    report = sweep.report
    return [
        [
            "*" if row.name in sweep.front else "",
            *bench_cells(report, row),
            report.loss.text(row.quality["loss"]),
        ]
        for row in sweep.rows
    ]


def sweep_table(sweep: Sweep) -> Table:
    """The same for the terminal; those on the front are bold."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for title in sweep_headers(sweep):
        left = title in ("front", "setting")
        view.add_column(title, justify="left" if left else "right", no_wrap=True)
    for texts in sweep_cells(sweep):
        view.add_row(*(Text(text, style="bold green" if texts[0] else "") for text in texts))
    return view


def sweep_lines(sweep: Sweep) -> list[str]:
    """What the table holds, one sentence each."""
    report = sweep.report
    return [
        *bench_notes(report),
        f"{report.loss.title}: {report.loss.about}.",
        f"*: on the front of throughput and {report.loss.title}: no setting is faster and loses "
        "less. Settings that differ in the value of alpha alone do the same work and share one "
        "timing.",
    ]


def draw_sweep(sweep: Sweep, kind: str) -> bytes:
    """The loss against the throughput of every setting, the front as a line, as a file's content.

    Args:
        sweep: a finished sweep.
        kind: one of `KINDS`.

    Raises:
        MissingExtra: if matplotlib is not installed.
    """
    require("matplotlib", "report")
    import matplotlib
    from matplotlib.figure import Figure

    report = sweep.report
    scale = 100 if report.loss.percent else 1
    with matplotlib.rc_context(PLAIN | {"svg.hashsalt": "turbovlm", "font.size": 11}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes: Any = figure.subplots()
        for method, rows in by_method(report).items():
            colour, marker = style_of(method, report)
            x = [row.throughput for row in rows]
            y = [scale * row.quality["loss"] for row in rows]
            axes.scatter(x, y, color=colour, marker=marker, s=30, alpha=0.6, label=method)
        best = [row for row in sweep.rows if row.name in sweep.front]
        points = [(row.throughput, scale * row.quality["loss"]) for row in best]
        axes.plot(*zip(*points, strict=True), color=INK, linewidth=1.2, label="front")
        for point in dict.fromkeys(points):  # equal rows stand in one place
            names = [row.name for row, at in zip(best, points, strict=True) if at == point]
            text = "\n".join(names)
            axes.annotate(text, point, (-5, 4), textcoords="offset points", ha="right", fontsize=8)
        axes.set_xlabel(f"measured images per second, batch {report.batch}", color=INK)
        dress(axes, report.loss, INK)
        axes.legend(frameon=False, fontsize=9)
        metadata = {"Date": None} if kind == ".svg" else None
        file = io.BytesIO()
        figure.savefig(file, format=kind.removeprefix("."), dpi=160, metadata=metadata)
    return file.getvalue()
