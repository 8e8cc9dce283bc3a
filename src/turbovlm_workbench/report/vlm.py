"""Answers with fewer visual tokens: a table, and a page with the tokens that stay lit up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from turbovlm_workbench.demo.vlm import SCENES, TIMED, VlmDemo, VlmSide
from turbovlm_workbench.report.page import data_uri, render

UNLIT = 0.25  # brightness of a patch whose token is dropped
TOPICS = ("answers", "colour", "shape", "size", "position", "count", "presence", "word")
HEADERS = ("visual tokens", "ms to first token", "speed-up", *TOPICS)


def lit_tokens(picture: NDArray[np.uint8], kept: Sequence[int], rows: int) -> NDArray[np.uint8]:
    """The picture with the patches of the tokens that stay; the others are dark.

    Args:
        picture: uint8 (S, S, 3).
        kept: indices among its patches, row after row.
        rows: patches along its side.
    """
    stays = np.zeros(rows * rows, dtype=bool)
    stays[kept] = True
    fine = stays.reshape(rows, rows).repeat(len(picture) // rows, 0).repeat(len(picture) // rows, 1)
    return np.where(fine[..., None], picture, (picture * UNLIT).astype(np.uint8))


def vlm_cells(side: VlmSide) -> list[str]:
    """One row, as text, in the order of ``HEADERS``."""
    speed = side.speedup
    return [
        side.name,
        f"{1000 * side.seconds:.1f}",
        f"{speed.value:.2f}x [{speed.low:.2f}, {speed.high:.2f}]",
        *(f"{100 * side.right[topic]:.1f} %" for topic in TOPICS),
    ]


def vlm_table(demo: VlmDemo) -> Table:
    """One row for each side, all tokens first."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(HEADERS):
        shown.add_column(header, justify="right" if index else "left", no_wrap=True)
    for side in demo.sides:
        shown.add_row(*vlm_cells(side))
    return shown


def vlm_notes(demo: VlmDemo) -> list[str]:
    """What the columns mean and what they were measured on, one sentence each."""
    facts = demo.environment
    return [
        f"The built-in LLaVA on {SCENES} generated scenes that it was not trained on, fp32, "
        f"{facts['cpu']}, threads: {facts['threads']}.",
        f"ms to first token: of {TIMED} pictures in one call, vision encoder included, median. In "
        "this model that encoder takes the larger part; in LLaVA-1.5-7B it is 4 %.",
        "speed-up: median of interleaved rounds [95 % interval].",
        "answers: share of questions answered right to the letter, then by what they ask; word: "
        "two to four printed letters, each in one token.",
    ]


def vlm_page(demo: VlmDemo, title: str) -> str:
    """The demonstration as one HTML page that needs nothing else.

    Raises:
        MissingExtra: if jinja2 is not installed.
    """
    whole, *fewer = demo.sides
    last = fewer[0]
    return render(
        "vlm.html.j2",
        title=title,
        figures=[
            (f"{whole.tokens} \u2192 {last.tokens}", "visual tokens of a picture"),
            (f"{last.speedup.value:.2f}x", "measured speed to the first token"),
            (
                f"{100 * whole.right['answers']:.0f} % \u2192 {100 * last.right['answers']:.0f} %",
                "answers right",
            ),
        ],
        headers=HEADERS,
        rows=[vlm_cells(side) for side in demo.sides],
        names=[side.name for side in demo.sides],
        samples=[_sample(demo, index) for index in range(len(demo.scenes))],
        notes=vlm_notes(demo),
        environment=demo.environment,
    )


def _sample(demo: VlmDemo, index: int) -> dict[str, Any]:
    picture = demo.scenes[index].image
    rows = round(demo.sides[0].tokens ** 0.5)
    pictures = [
        lit_tokens(picture, side.kept[index], rows) if side.kept else picture for side in demo.sides
    ]
    answers = zip(*(side.answers[index] for side in demo.sides), strict=True)
    return {
        "pictures": [data_uri(shown, "png") for shown in pictures],
        "questions": [
            {"text": told.prompt, "answers": [(said, said == told.answer) for said in some]}
            for told, some in zip(demo.asked[index], answers, strict=True)
        ],
    }
