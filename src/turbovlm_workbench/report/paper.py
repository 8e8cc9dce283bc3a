"""The paper's FLOPs rows as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from turbovlm_workbench.paper.count import TOLERANCE, PaperRow

HEADERS = ("model", "r", "published", "exact", "computed", "error", "equal", "ideal", "paper")

NOTES = (
    "GFLOPs count a multiply-add as one. published: the paper's column; exact: its convention by "
    "closed formulas; computed: counted now from the real model.\n"
    f"error: computed against exact; equal: within {TOLERANCE:.1%}. ideal: how many times fewer "
    "operations than unmerged.\n"
    "r: tokens merged in every block, or the share of the tokens that a denoiser is spared.\n"
    "paper: the speed-up that the paper measured, on one RTX 3090 with eager attention."
)


def paper_cells(row: PaperRow) -> list[str]:
    """One row, as text, in the order of `HEADERS`."""
    return [
        "" if row.merged else row.name,
        row.merged or "-",
        "-" if row.published is None else f"{row.published:.1f}",
        f"{row.exact:.3f}".removesuffix("0"),
        f"{row.computed:.3f}",
        f"{100 * row.error:+.3f} %",
        "yes" if row.equal else "NO",
        f"{row.ideal:.2f}x",
        "-" if row.throughput is None else f"{row.throughput:.2f}x",
    ]


def paper_table(rows: Sequence[PaperRow]) -> Table:
    """All rows; an empty line separates the models, and what is not equal is red."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for title in HEADERS:
        view.add_column(title, justify="left" if title == "model" else "right", no_wrap=True)
    view.add_column("configuration", overflow="fold")
    for row in rows:
        if row is not rows[0] and not row.merged:
            view.add_row()
        words = [] if row.merged else [row.configuration]
        words += [row.note] if row.note else []
        style = "" if row.equal else "bold red"
        view.add_row(*(Text(cell, style=style) for cell in [*paper_cells(row), "; ".join(words)]))
    return view


def paper_verdict(rows: Sequence[PaperRow]) -> str:
    """One sentence: how many rows are equal."""
    equal = sum(row.equal for row in rows)
    worst = max(rows, key=lambda row: abs(row.error))
    return (
        f"{equal} of {len(rows)} rows are within {TOLERANCE:.1%} of the exact figure; the largest "
        f"difference is {100 * abs(worst.error):.3f} % ({worst.name}, r={worst.merged or 0})."
    )
