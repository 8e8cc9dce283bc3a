"""What a model costs with and without merging, as tables for the terminal."""

from __future__ import annotations

from rich.table import Table

from turbovlm_workbench.compare.operations import Operations
from turbovlm_workbench.compare.titles import blocks_title

NOTE = (
    "GFLOPs: of one forward, a multiply-add counted as one; ideal is what they allow. tokens: "
    "after the last block."
)


def operations_table(counted: Operations) -> Table:
    """One line per setting: tokens left, GFLOPs, ideal speed-up."""
    view = _view("setting", "tokens", "GFLOPs", "ideal")
    for cost in counted.costs:
        tokens = "-" if cost.tokens is None else str(cost.tokens)
        view.add_row(cost.name, tokens, f"{cost.gflops:.3f}", f"{cost.ideal:.2f}x")
    return view


def operations_notes(counted: Operations) -> list[str]:
    """What the columns mean, and the r of each block where a speed-up was asked for."""
    chosen = [
        f"{cost.name}: r={blocks_title(cost.r)}, as tokens@block."
        for cost in counted.costs
        if cost.config is not None and cost.config.speedup is not None and cost.r is not None
    ]
    return [NOTE, *chosen]


def parts(counted: Operations) -> Table:
    """One line per part of the model, its GFLOPs in every setting, its share unmerged."""
    view = _view("part", "share", *(cost.name for cost in counted.costs))
    whole = counted.costs[0]
    for part, gflops in whole.parts.items():
        each = (f"{cost.parts[part]:.3f}" for cost in counted.costs)
        view.add_row(part, f"{gflops / whole.gflops:.1%}", *each)
    return view


def _view(first: str, *others: str) -> Table:
    view = Table(box=None, pad_edge=False, header_style="bold")
    view.add_column(first, no_wrap=True)
    for title in others:
        view.add_column(title, justify="right", no_wrap=True)
    return view
