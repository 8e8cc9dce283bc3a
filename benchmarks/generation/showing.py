"""The results as a markdown table, as curves and as a page of pictures."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from methods import TOMESD, Candidate
from scoring import Sheet
from summary import MEASURES, TIMES, Entry

from turbovlm_workbench.report.plot import STYLES

PEER_STYLE = ("#cc79a7", "v")
LINES = ("-", "--", ":", "-.")
PANELS = ("right", "fid_real", "fid_unmerged", "squared")
PERCENT = ("right", "exact")


def markdown(entries: Sequence[Entry], prompts: int) -> str:
    """One line a configuration; the difference to turbo stands beside each measure."""
    heads = ["ratio", "method", *MEASURES.values(), "squared distance, times turbo's"]
    lines = [f"{prompts} prompts. In brackets: the difference to turbo and its 95 % interval.", ""]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for entry in entries:
        cells = [_cell(entry, name) for name in MEASURES]
        middle, low, high = entry.over_turbo.get(TIMES, (1.0, 1.0, 1.0))
        cells.append(f"{middle:.2f} [{low:.2f}, {high:.2f}]" if entry.over_turbo else "-")
        ratio = "-" if entry.ratio is None else f"{entry.ratio:.0%}"
        lines.append("| " + " | ".join([ratio, entry.label, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _cell(entry: Entry, name: str) -> str:
    if name not in entry.values:
        return "-"
    value = _number(name, entry.values[name])
    if name not in entry.over_turbo:
        return value
    middle, low, high = (_number(name, number, sign=True) for number in entry.over_turbo[name])
    return f"{value} ({middle} [{low}, {high}])"


def _number(name: str, value: float, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    if name in PERCENT:
        return f"{100 * value:{plus}.1f} %" if not sign else f"{100 * value:{plus}.1f}"
    return f"{value:{plus}.{1 if name in ('psnr', 'squared') else 3}f}"


def curves(path: Path, entries: Sequence[Entry]) -> None:
    """A panel for each of four measures against the ratio; dashed: the unmerged pictures."""
    figure = Figure(figsize=(5.2 * len(PANELS), 4.2), layout="constrained")
    panels: Any = figure.subplots(1, len(PANELS))
    base = next(entry for entry in entries if entry.label == "unmerged")
    labels = list(dict.fromkeys(entry.label for entry in entries if entry.ratio is not None))
    for axes, name in zip(panels, PANELS, strict=True):
        scale = 100 if name in PERCENT else 1
        if name in base.values:
            axes.axhline(scale * base.values[name], color="black", linewidth=0.8, linestyle="--")
        for label in labels:
            rows = [entry for entry in entries if entry.label == label]
            colour, marker = PEER_STYLE if rows[0].method == TOMESD else STYLES[rows[0].method]
            setting = [la for la in labels if la.split(" ")[0] == rows[0].method].index(label)
            axes.plot(
                [100 * (row.ratio or 0) for row in rows],
                [scale * row.values[name] for row in rows],
                color=colour,
                marker=marker,
                linestyle=LINES[setting % len(LINES)],
                label=label,
            )
        if name == "squared":
            axes.set_yscale("log")  # methods differ by factors
        axes.set_title(MEASURES[name] + (" [%]" if name in PERCENT else ""))
        axes.set_xlabel("tokens merged [%]")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def gallery(
    path: Path,
    real: Sheet,
    base: Sheet,
    sheets: Sequence[tuple[Candidate, Sheet]],
    prompts: Sequence[str],
    args: Namespace,
) -> None:
    """Rows: the real scene, unmerged, and every method at the middle ratio; a column a prompt."""
    ratio = sorted(args.ratio)[len(args.ratio) // 2]
    rows = {"real": real, "unmerged": base}
    rows |= {f"{c.label} {ratio:.0%}": s for c, s in sheets if c.config.ratio == ratio}
    columns = min(args.show, len(prompts))
    figure = Figure(figsize=(1.7 * columns + 1.2, 1.75 * len(rows) + 0.8), layout="constrained")
    grid: Any = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, sheet) in zip(grid, rows.items(), strict=True):
        for axes, picture in zip(line, sheet.pictures, strict=False):
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(textwrap.fill(label, 20), fontsize=8)
    for axes, prompt in zip(grid[0], prompts, strict=False):
        axes.set_title(textwrap.fill(prompt, 28), fontsize=6)
    figure.savefig(path, dpi=130)
