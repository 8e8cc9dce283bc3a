"""A reader of questions and statements that shares no code with what writes them."""

from __future__ import annotations

from collections.abc import Sequence

from turbovlm_lab.scenes import Object

SINGULAR = {
    "circles": "circle",
    "squares": "square",
    "triangles": "triangle",
    "crosses": "cross",
    "stars": "star",
    "rings": "ring",
    "objects": "object",
}
COLOURS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "white"]
CELLS = {"top": 0, "centre": 1, "bottom": 2, "left": 0, "right": 2}


def meant(phrase: str, objects: Sequence[Object]) -> list[Object]:
    """The objects that a phrase such as "a large red circle at the top left" speaks of."""
    what, _, where = phrase.partition(" at the ")
    left = list(objects)
    for word in what.split():
        if word in ("a", "an", "the"):
            continue
        word = SINGULAR.get(word, word)
        if word in ("small", "large"):
            left = [o for o in left if (o.side > 40) == (word == "large")]
        elif word in COLOURS:
            left = [o for o in left if o.colour == word]
        elif word != "object":
            assert word in SINGULAR.values(), phrase
            left = [o for o in left if o.shape == word]
    if where:
        left = [o for o in left if (o.row, o.column) == cell(where)]
    return left


def cell(words: str) -> tuple[int, int]:
    """Row and column of "top left", "top", "left" or "centre"."""
    row = column = 1
    for word in words.split():
        if word in ("top", "bottom"):
            row = CELLS[word]
        elif word in ("left", "right"):
            column = CELLS[word]
    return row, column
