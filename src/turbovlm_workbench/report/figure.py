"""Figures as files or inside a page: one look, no clock and no machine in the file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from turbovlm.errors import ConfigError, require
from turbovlm_workbench.report.plot import PLAIN, TEXT

FIGURES = (".svg", ".png")
"""Endings of the files that a figure can be written to."""
COLOURS = ("#5d646d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of lines, in order; the first one, grey, is the unmerged model."""
MARKERS = "osD^Pv>"

Paint = Callable[[Sequence[Any]], None]
"""Draws on the axes of a figure, from left to right."""


def check_figure(path: Path | None, flag: str) -> None:
    """Make sure that a figure can be drawn into ``path``, before a long run.

    Raises:
        ConfigError: for another ending than `FIGURES`.
        MissingExtra: if matplotlib is not installed.
    """
    if path is None:
        return
    if path.suffix.lower() not in FIGURES:
        raise ConfigError(f"{flag} {path} must end in {' or '.join(FIGURES)}")
    require("matplotlib", "report")


def figure_file(paint: Paint, panels: int, kind: str) -> bytes:
    """The content of a file.

    Args:
        paint: draws the panels.
        panels: how many there are, side by side.
        kind: one of `FIGURES`.
    """
    return _drawn(paint, panels, kind.lower().removeprefix("."), transparent=False)


def figure_inline(paint: Paint, panels: int) -> str:
    """An ``<svg>`` element that takes its text colour from the page around it."""
    svg = _drawn(paint, panels, "svg", transparent=True).decode()
    return svg[svg.index("<svg") :].replace(TEXT, "currentColor")


def dress_panel(axes: Any, title: str, below: str) -> None:
    """Title, label, ticks and spines of one panel."""
    axes.set_title(title, loc="left", color=TEXT, fontsize=12)
    axes.set_xlabel(below, color=TEXT)
    axes.tick_params(colors=TEXT)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(TEXT)
    axes.margins(x=0.04, y=0.12)


def add_legend(axes: Any) -> None:
    """Names of the lines, where there is more than one."""
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=TEXT)


def _drawn(paint: Paint, panels: int, kind: str, *, transparent: bool) -> bytes:
    require("matplotlib", "report")
    import matplotlib
    from matplotlib.figure import Figure

    look = PLAIN | {"svg.hashsalt": "turbovlm", "font.size": 11}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(4.6 * panels, 3.4), layout="constrained")
        axes: Any = figure.subplots(1, panels, squeeze=False)
        paint(list(axes[0]))
        file = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=110, transparent=transparent, metadata=metadata)
    return file.getvalue()
