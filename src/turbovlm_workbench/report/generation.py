"""Pictures with and without merging: a table, one PNG with all of them, and a page."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from turbovlm.errors import require
from turbovlm_workbench.generation.compare import Comparison, Side
from turbovlm_workbench.metrics.pictures import levels
from turbovlm_workbench.report.page import data_uri, render
from turbovlm_workbench.report.plot import PLAIN

CELL = 2.4  # inches of one picture in the grid
WHITE = 64  # levels of difference that are drawn white
_HEAT = ((0, 0, 0), (120, 28, 109), (237, 105, 37), (252, 255, 164))  # dark to bright
HEADERS = ("setting", "GFLOPs", "ideal", "s/picture", "speed-up", "difference", "PSNR")


def picture_cells(comparison: Comparison, side: Side) -> list[str]:
    """One row, as text, in the order of ``HEADERS``."""
    base, speed = comparison.sides[0], side.speedup
    first = side is base
    ends = "" if first or comparison.rounds < 2 else f" [{speed.low:.2f}, {speed.high:.2f}]"
    return [
        side.name,
        f"{side.gmacs:.4g}",
        f"{base.gmacs / side.gmacs:.2f}x",
        f"{side.seconds:.3g}",
        f"{speed.value:.2f}x{ends}",
        "" if first else f"{side.difference:.2f}",
        "" if first else "equal" if side.psnr is None else f"{side.psnr:.1f} dB",
    ]


def picture_table(comparison: Comparison) -> Table:
    """One row for each side, the unmerged one first."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for header in HEADERS:
        left = header == "setting"
        shown.add_column(header, justify="left" if left else "right", no_wrap=True)
    for side in comparison.sides:
        shown.add_row(*picture_cells(comparison, side))
    return shown


def picture_notes(comparison: Comparison) -> list[str]:
    """What the columns mean and what they were measured on, one sentence each."""
    facts = comparison.environment
    count = len(comparison.prompts)
    prompts = "1 prompt" if count == 1 else f"{count} prompts"
    machine = facts.get("gpu") or f"{facts['cpu']}, threads: {facts['threads']}"
    width, height = comparison.size
    brackets = "95 % interval" if comparison.rounds >= 6 else "lowest, highest"
    least = {side.merge.min_tokens for side in comparison.sides if side.merge}
    spared = [f"modules with fewer than {n} visual tokens are left alone." for n in least if n]
    return [
        f"{comparison.model}: {prompts}, pictures of {width} x {height}, "
        f"{comparison.dtype}, {facts['device']} ({machine}).",
        "GFLOPs: of one denoising step, guidance included, a multiply-add counted as one; ideal is "
        "what they allow.",
        "s/picture: median, one picture a call, text encoder and autoencoder included; each side's "
        "first call warms up and is not timed.",
        f"speed-up: median of {comparison.rounds} interleaved rounds [{brackets}].",
        "difference, PSNR: to the unmerged pictures of the same noise; mean absolute, of 255 "
        "levels.",
        *spared,
    ]


def fastest(comparison: Comparison) -> Side:
    """Of the settings of the first method: the others are there to compare."""
    merged = [side for side in comparison.sides if side.merge is not None]
    first = merged[0].merge
    same = [side for side in merged if first and side.merge and side.merge.method == first.method]
    return max(same, key=lambda side: side.speedup.value)


def picture_verdict(comparison: Comparison) -> str:
    """One sentence: what the fastest setting of the first method gains, or that none does."""
    base, best = comparison.sides[0], fastest(comparison)
    if all(side.gmacs == base.gmacs for side in comparison.sides):
        return (
            "Nothing was merged: give a larger ratio, or a smaller least number of tokens "
            "(min_tokens)."
        )
    if best.speedup.value <= 1:
        return (
            "No setting is faster here: the tokens take too little of the time. Larger pictures "
            "gain more, and so does leaving the small levels alone (min_tokens)."
        )
    return (
        f"{best.name} draws {best.speedup.value:.2f} times as fast, where operations allow "
        f"{base.gmacs / best.gmacs:.2f}; its pictures differ by {best.difference:.2f} of 255 "
        "levels."
    )


def heat(one: Image.Image, other: Image.Image) -> NDArray[np.uint8]:
    """The absolute difference of two pictures as colours (H, W, 3): black is none."""
    strength = np.clip(levels(one, other).mean(axis=2) / WHITE, 0, 1) * (len(_HEAT) - 1)
    stops = np.arange(len(_HEAT))
    channels = [np.interp(strength, stops, [stop[c] for stop in _HEAT]) for c in range(3)]
    return np.stack(channels, axis=2).round().astype(np.uint8)


def grid(comparison: Comparison) -> bytes:
    """One PNG: a row for each prompt, unmerged, then merged and difference of every side.

    Pictures are shown in their own pixels at least.

    Raises:
        MissingExtra: if matplotlib is not installed.
    """
    require("matplotlib", "report")
    import matplotlib

    with matplotlib.rc_context(PLAIN):
        return _grid(comparison)


def _grid(comparison: Comparison) -> bytes:
    from matplotlib.figure import Figure

    base, *merged = comparison.sides
    columns = 1 + 2 * len(merged)
    rows = len(comparison.prompts)
    lines = [textwrap.wrap(prompt, 13 * columns) for prompt in comparison.prompts]
    room = 0.45 + 0.17 * max(map(len, lines))
    figure = Figure(figsize=(CELL * columns, (CELL + room) * rows), layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for row, words in enumerate(lines):
        before = base.pictures[row]
        _show(panels[row][0], before, f"{base.name}, {base.seconds:.3g} s")
        panels[row][0].set_xlabel("\n".join(words), loc="left", fontsize=9)
        for column, side in enumerate(merged):
            after = side.pictures[row]
            name = f"{side.name}, {side.seconds:.3g} s"
            _show(panels[row][1 + 2 * column], after, name)
            _show(panels[row][2 + 2 * column], heat(before, after), f"difference (white: {WHITE})")
    dots = max(100, round(max(comparison.size) / CELL * 1.1))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dots, metadata={"Software": None})
    return file.getvalue()


def picture_page(
    comparison: Comparison,
    title: str,
    said: Mapping[str, Sequence[str]],
    right: Mapping[str, float],
) -> str:
    """The demo as one HTML page that needs nothing else.

    Args:
        comparison: what was drawn.
        title: of the page.
        said: what a captioner reads in every picture, by the name of the side.
        right: share of the prompts' attributes that it finds drawn, likewise.

    Raises:
        MissingExtra: if jinja2 is not installed.
    """
    base, best = comparison.sides[0], fastest(comparison)
    samples = [
        {
            "prompt": prompt,
            "pictures": [
                _figure(side, base, row, said[side.name][row] == prompt)
                for side in comparison.sides
            ],
        }
        for row, prompt in enumerate(comparison.prompts)
    ]
    return render(
        "generation.html.j2",
        title=title,
        figures=[
            (f"{best.speedup.value:.2f}x", f"measured speed, {best.name}"),
            (f"{base.gmacs:.3g} → {best.gmacs:.3g}", "GFLOPs of one step"),
            (f"{100 * right[base.name]:.0f} % → {100 * right[best.name]:.0f} %", "drawn right"),
        ],
        headers=[*HEADERS, "drawn right"],
        rows=[
            [*picture_cells(comparison, side), f"{100 * right[side.name]:.1f} %"]
            for side in comparison.sides
        ],
        samples=samples,
        notes=picture_notes(comparison),
        environment=comparison.environment,
    )


def _figure(side: Side, base: Side, row: int, same: bool) -> dict[str, Any]:
    picture = np.asarray(side.pictures[row].convert("RGB"))
    difference = heat(base.pictures[row], side.pictures[row])
    return {
        "name": side.name,
        "picture": data_uri(picture, "png"),
        "difference": None if side is base else data_uri(difference, "png"),
        "same": same,
    }


def _show(axes: Any, picture: Any, title: str) -> None:
    axes.imshow(np.asarray(picture), interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
