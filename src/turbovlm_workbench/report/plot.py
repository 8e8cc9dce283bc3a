"""The trade-off: quality against measured speed-up, one line per method."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from turbovlm.errors import require
from turbovlm_workbench.compare.rows import BenchReport, BenchRow
from turbovlm_workbench.compare.titles import amount_of, line_of
from turbovlm_workbench.metrics.measure import Measure

# Okabe and Ito's palette, told apart with every kind of colour vision; markers differ as well.
STYLES = {
    "turbo": ("#0072b2", "o"),
    "redundancy": ("#d55e00", "s"),
    "semantics": ("#009e73", "^"),
    "random": ("#8a8a8a", "D"),
}
OTHER_STYLES = (("#cc79a7", "P"), ("#e69f00", "X"), ("#56b4e9", "v"))  # of registered scores
TEXT = "#010203"  # stands for the page's text colour, see `trade_off`
# A dollar sign in a name or a prompt is a dollar sign and begins no formula.
PLAIN: Any = {"text.parse_math": False, "text.usetex": False}
WIDTH, HEIGHT = 5.2, 4.0  # inches, of one panel


def trade_off(report: BenchReport) -> str:
    """The plot as an ``<svg>`` element that takes its text colour from the page around it.

    One panel for the first measure and one for the agreement, where they differ.

    Raises:
        MissingExtra: if matplotlib is not installed.
    """
    require("matplotlib", "report")
    import matplotlib
    from matplotlib.figure import Figure

    measures = list(dict.fromkeys(m for m in report.measures[:2] if m.percent or m.key == "cosine"))
    with matplotlib.rc_context(PLAIN | {"svg.hashsalt": "turbovlm", "font.size": 11}):
        figure = Figure(figsize=(WIDTH * len(measures), HEIGHT), layout="constrained")
        panels: Any = figure.subplots(1, len(measures), squeeze=False)
        for axes, measure in zip(panels[0], measures, strict=True):
            _panel(axes, report, measure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(TEXT, "currentColor")


def _panel(axes: Any, report: BenchReport, measure: Measure) -> None:
    scale = 100 if measure.percent else 1
    base = [row for row in report.rows if not row.settings][-1]
    level = scale * base.quality[measure.key]
    axes.axhline(level, color=TEXT, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
    axes.axvline(1, color=TEXT, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
    ends: list[tuple[float, float, str, str]] = []
    for method, rows in by_method(report).items():
        colour, marker = style_of(method, report)
        x = [row.speedup.value for row in rows]
        y = [scale * row.quality[measure.key] for row in rows]
        low = [row.speedup.low for row in rows]
        high = [row.speedup.high for row in rows]
        axes.hlines(y, low, high, color=colour, linewidth=4, alpha=0.22)
        axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.8)
        ends.append((x[-1], y[-1], method, colour))
        if len(ends) == 1:  # once is enough: the other methods go through the same amounts
            for row, *point in zip(rows, x, y, strict=True):
                label = amount_of(row.settings)
                axes.annotate(
                    label,
                    point,
                    (0, 8),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                    color=TEXT,
                )
    axes.set_xlabel("measured speed-up over the unmerged model", color=TEXT)
    axes.xaxis.set_major_formatter("{x:g}x")
    dress(axes, measure, TEXT)
    _name_lines(axes, ends)


def style_of(method: str, report: BenchReport) -> tuple[str, str]:
    """Colour and marker of a method; registered ones get theirs in the order of the report."""
    if method in STYLES:
        return STYLES[method]
    own = [name for name in by_method(report) if name not in STYLES]
    return OTHER_STYLES[own.index(method) % len(OTHER_STYLES)]


def by_method(report: BenchReport) -> dict[str, list[BenchRow]]:
    """The rows that reduce something, by their line, in the order of the table."""
    groups: dict[str, list[BenchRow]] = {}
    for row in report.rows:
        line = line_of(row.settings)
        if line is not None:
            groups.setdefault(line, []).append(row)
    return groups


def dress(axes: Any, measure: Measure, colour: str) -> None:
    """Title, ticks and spines of one panel that shows ``measure``."""
    unit = " (%)" if measure.percent else ""
    axes.set_title(f"{measure.title}{unit}", loc="left", color=colour, fontsize=12)
    axes.tick_params(colors=colour)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(colour)
    axes.margins(x=0.06, y=0.12)


def _name_lines(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Each method's name right of all lines, pushed apart where two would overlap."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    gap = 0.07 * (high - low)
    height = math.inf
    for x, y, name, colour in sorted(ends, key=lambda end: -end[1]):
        height = min(y, height - gap)
        axes.annotate(
            name,
            (x, y),
            (right, height),
            color=colour,
            va="center",
            fontweight="bold",
            fontsize=10,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.5},
        )
    axes.set_xlim(left, right + 0.24 * (right - left))
    axes.set_ylim(min(low, height), high)
