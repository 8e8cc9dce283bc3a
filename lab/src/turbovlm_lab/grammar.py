"""Captions of scenes: how they are written, read back and scored.

A caption lists the objects in reading order, one clause each:
``a large red circle at the top left, a small blue star at the centre``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from turbovlm_lab.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Object

ATTRIBUTES = ("size", "colour", "shape", "position")


class Mention(NamedTuple):
    """The four attributes that a clause states."""

    size: str
    colour: str
    shape: str
    position: str


Describable = Object | Mention  # anything with the four attributes


def caption_vocabulary() -> tuple[str, ...]:
    """Every word a caption can hold, in a fixed order."""
    positions = dict.fromkeys(word for name in POSITIONS for word in name.split())
    return ("a", "at", "the", ",", *SIZES, *COLOURS, *SHAPES, *positions)


def describe(objects: Iterable[Describable]) -> str:
    """The caption of ``objects``, in the order given."""
    return ", ".join(f"a {o.size} {o.colour} {o.shape} at the {o.position}" for o in objects)


_CLAUSE = re.compile(
    rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    rf" at the ({'|'.join(sorted(POSITIONS, key=len, reverse=True))})"
)


def parse(caption: str) -> tuple[Mention, ...]:
    """The mentions of a caption; ``ValueError`` where it is not a sentence of the grammar."""
    mentions, broken = _read(caption)
    if broken:
        raise ValueError(f"not a caption of the grammar: {caption!r}")
    return mentions


def _read(caption: str) -> tuple[tuple[Mention, ...], int]:
    """The clauses that follow the grammar, and how many do not."""
    clauses = [" ".join(clause.split()) for clause in caption.lower().split(",")]
    found = [_CLAUSE.fullmatch(clause) for clause in clauses]
    mentions = tuple(Mention(*match.groups()) for match in found if match)
    return mentions, len(clauses) - len(mentions)


@dataclass(frozen=True)
class Accuracy:
    """Shares (0 to 1) over a set of captions; see ``attribute_accuracy``."""

    precision: float
    recall: float
    exact: float
    count: float
    by_attribute: dict[str, float]
    captions: int


def attribute_accuracy(
    predicted: Sequence[str], truths: Sequence[Sequence[Describable]]
) -> Accuracy:
    """Score captions against the objects of their scenes.

    The mentions of a caption are paired with the objects one to one, in order (a caption lists
    objects in reading order, so pairs never cross), in the way that agrees on most attributes.
    An attribute is right when the paired object has it; a mention that is left over, and a clause
    that is no sentence of the grammar, counts as four wrong attributes; so does, in ``recall``
    alone, an object that is not mentioned.

    - ``precision``: right attributes among those mentioned (the share the library reports).
    - ``recall``: right attributes among those of the true objects.
    - ``exact``: captions with every attribute right and nothing missing or added.
    - ``count``: captions with as many clauses as there are objects.
    - ``by_attribute``: as ``precision``, for each of size, colour, shape and position.
    """
    if len(predicted) != len(truths):
        raise ValueError(f"{len(predicted)} captions for {len(truths)} scenes")
    right: Counter[str] = Counter()
    clauses = objects = exact = count = 0
    for caption, truth in zip(predicted, truths, strict=True):
        wanted = [Mention(o.size, o.colour, o.shape, o.position) for o in truth]
        mentions, broken = _read(caption)
        agreed = _agreement(mentions, wanted)
        right.update(agreed)
        said = len(mentions) + broken
        clauses += said
        objects += len(wanted)
        count += said == len(wanted)
        exact += said == len(wanted) and agreed.total() == len(ATTRIBUTES) * len(wanted)
    return Accuracy(
        precision=_share(right.total(), len(ATTRIBUTES) * clauses),
        recall=_share(right.total(), len(ATTRIBUTES) * objects),
        exact=_share(exact, len(predicted)),
        count=_share(count, len(predicted)),
        by_attribute={name: _share(right[name], clauses) for name in ATTRIBUTES},
        captions=len(predicted),
    )


def trivial_captions(
    training: Sequence[Sequence[Describable]], number: int, *, clauses: int | None = None
) -> list[str]:
    """What a captioner says that never looks: one caption of frequent words, ``number`` times.

    It names the most frequent size, colour and shape of ``training`` at each of the most frequent
    positions, in reading order, with ``clauses`` clauses (the mean number of objects if None).
    """
    flat = [o for objects in training for o in objects]
    clauses = round(len(flat) / len(training)) if clauses is None else clauses
    cells = {name for name, _ in Counter(o.position for o in flat).most_common(clauses)}
    top = [Counter(getattr(o, name) for o in flat).most_common(1)[0][0] for name in ATTRIBUTES[:3]]
    caption = describe(Mention(*top, position=name) for name in POSITIONS if name in cells)
    return [caption] * number


def _agreement(mentions: Sequence[Mention], wanted: Sequence[Mention]) -> Counter[str]:
    """Attributes that agree under the best order-keeping pairing, by name."""
    # above[j] is the best agreement of the mentions read so far with the first j objects.
    above = [Counter[str]() for _ in range(len(wanted) + 1)]
    for said in mentions:
        row = [Counter[str]()]
        for true, skipped, paired in zip(wanted, above[1:], above, strict=False):
            same = Counter(
                name for name in ATTRIBUTES if getattr(said, name) == getattr(true, name)
            )
            row.append(max(paired + same, skipped, row[-1], key=Counter[str].total))
        above = row
    return above[-1]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
