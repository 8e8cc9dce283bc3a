"""An analysis as a table, and as the paper's Fig. 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from turbovlm_workbench.analyze.encoder import Analysis
from turbovlm_workbench.analyze.language import LanguageAnalysis
from turbovlm_workbench.report.figure import COLOURS, MARKERS, add_legend, dress_panel
from turbovlm_workbench.report.plot import TEXT

BLOCK = ("redundancy", "concentration", "tokens", "merge_error", "time")
TITLES = {
    "redundancy": "redundancy",
    "concentration": "top quarter",
    "tokens": "tokens",
    "merge_error": "merge error",
    "time": "time",
    "mass": "on the picture",
}
LAYER = ("redundancy", "concentration", "mass")
LANGUAGE_HEADERS = ("layer", *(TITLES[name] for name in LAYER))


def analysis_headers(found: Analysis) -> list[str]:
    """Titles of the columns; those of further sides name the side."""
    heads = ["block"]
    for side in found.sides:
        plain = side == "unmerged"
        names = [n for n in BLOCK if not plain or n not in ("tokens", "merge_error")]
        heads += [TITLES[n] if plain else f"{side}: {TITLES[n]}" for n in names]
    return heads


def analysis_rows(found: Analysis) -> list[list[str]]:
    """One row for each block, as text, in the order of `analysis_headers`."""
    rows = []
    for blocks in zip(*found.sides.values(), strict=True):
        cells = [str(blocks[0].block)]
        for side, block in zip(found.sides, blocks, strict=True):
            plain = side == "unmerged"
            names = [n for n in BLOCK if not plain or n not in ("tokens", "merge_error")]
            cells += [_cell(name, getattr(block, name)) for name in names]
        rows.append(cells)
    return rows


def language_rows(found: LanguageAnalysis) -> list[list[str]]:
    """One row for each layer of a language model."""
    return [
        [str(layer.layer), *(_cell(name, getattr(layer, name)) for name in LAYER)]
        for layer in found.layers
    ]


def rows_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Numbers for the terminal, the first column on the left."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for title in headers:
        left = title == headers[0]
        view.add_column(title, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        view.add_row(*row)
    return view


def analysis_notes(found: Analysis) -> list[str]:
    """What the columns mean, one sentence each."""
    whose = "the cls token" if found.guide == "cls" else "the mean query"
    return [
        f"{found.model}: {found.tower}, means over {found.samples} samples; tokens that lead the "
        "sequence (cls, registers) and padding do not count, but among the tokens left.",
        "redundancy: mean cosine of all pairs of tokens after the block's attention.",
        f"top quarter: share of the attention of {whose} that the quarter of the tokens with the "
        "most of it holds (attention concentration).",
        "merge error: distance of merged tokens to the mean that replaces them, over their length, "
        "weighted by size. tokens: left after the block.",
        "time: share of the block, one forward a batch; of the last one with what follows it.",
    ]


def language_notes(found: LanguageAnalysis) -> list[str]:
    """What the columns of a language model mean."""
    return [
        f"{found.language}: {found.visual:.0f} visual tokens a prompt, means over {found.samples} "
        "prompts, no token left out.",
        "redundancy: mean cosine of all pairs of visual tokens that leave the layer.",
        "top quarter: share of the last token's attention to visual tokens that a quarter of them "
        "holds; on the picture: share of its attention that goes to visual tokens at all.",
    ]


def analysis_panels(found: Analysis) -> int:
    """How many panels `paint_analysis` needs."""
    return 2 if found.config is None else 4


def paint_analysis(found: Analysis, panels: Sequence[Any]) -> None:
    """Token redundancy and attention concentration by block (Fig. 3); what merging leaves."""
    titles = ("token redundancy", "attention concentration", "tokens left", "merge error")
    names = ("redundancy", "concentration", "tokens", "merge_error")
    for axes, title, name in zip(panels, titles, names, strict=False):
        for number, (side, blocks) in enumerate(found.sides.items()):
            points = [
                (block.block, value)
                for block in blocks
                if (value := getattr(block, name)) is not None
            ]
            if points:
                colour, marker = COLOURS[number % 7], MARKERS[number % 7]
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=colour, marker=marker, markersize=5, label=side)
        dress_panel(axes, title, "block")
    add_legend(panels[0])


def paint_language(found: LanguageAnalysis, panels: Sequence[Any]) -> None:
    """The same of the visual tokens, layer by layer: two panels."""
    x = [layer.layer for layer in found.layers]
    panels[0].plot(x, [layer.redundancy for layer in found.layers], color=COLOURS[1], marker="o")
    dress_panel(panels[0], "redundancy of the visual tokens", "layer")
    for name, colour, label in (
        ("concentration", COLOURS[1], "of it, in the top quarter"),
        ("mass", COLOURS[2], "attention on the picture"),
    ):
        points = [
            (layer.layer, value)
            for layer in found.layers
            if (value := getattr(layer, name)) is not None
        ]
        if points:
            panels[1].plot(*zip(*points, strict=True), color=colour, marker="o", label=label)
    dress_panel(panels[1], "attention of the last token", "layer")
    add_legend(panels[1])
    panels[1].set_ylim(0, 1.05)
    panels[1].axhline(0.25, color=TEXT, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "tokens":
        return f"{value:.1f}".removesuffix(".0")
    return f"{100 * value:.1f} %" if name in ("time", "concentration", "mass") else f"{value:.3f}"
