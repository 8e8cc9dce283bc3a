"""Statements about two scenes, true or false, after the example of NLVR2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from turbovlm.errors import InputError
from turbovlm_lab.grammar import ATTRIBUTES, Describable
from turbovlm_lab.kinds import Kind, kind_of, some
from turbovlm_lab.scenes import draw_integer

FEWEST_SCENES = 8  # of a pool; from so many on, a statement is found soon
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SIDES = ("left", "right")
_TRIES = 1000


class ScenePair(NamedTuple):
    """Two scenes by their place in the pool, and whether the statement is true of them."""

    left: int
    right: int
    label: bool


class StatementGroup(NamedTuple):
    """A statement about a kind of objects and four pairs of scenes: it is true of two."""

    statement: str
    about: Kind
    pairs: tuple[ScenePair, ...]


def group(pool: Sequence[Sequence[Describable]], seed: int) -> StatementGroup:
    """A statement with pairs of ``pool``; the same pool and seed give the same.

    As each statement is as often true as false, its words alone decide nothing. Among the true
    pairs, and among the false ones, all counts on the left and right that occur are equally
    likely, so that the counts are not nearly always 0.

    Args:
        pool: the objects of each scene.
        seed: 0 to 2**32 - 1.

    Raises:
        InputError: if the pool is too small, or its scenes too much alike, to find pairs.
    """
    if len(pool) < FEWEST_SCENES:
        raise InputError(f"pairs need at least {FEWEST_SCENES} scenes, got {len(pool)}: ask more")
    rng = RandomState(seed)
    apart = ~np.eye(len(pool), dtype=bool)
    for _ in range(_TRIES):
        form = _FORMS[draw_integer(rng, 0, len(_FORMS))]
        item = pool[draw_integer(rng, 0, len(pool))][0]
        # objects in all cannot be told apart from none: every scene has some
        fewest = 1 if form in (_both, _only, _neither) else 0
        kind = kind_of(item, some(rng, ATTRIBUTES[:3], draw_integer(rng, fewest, 3)))
        counts = np.array([kind.count(objects) for objects in pool])
        statement, true = form(kind, counts, rng)
        picked = [_pick(counts, apart & (true == label), rng) for label in (True, False)]
        if all(len(places) == 2 for places in picked):
            pairs = [
                ScenePair(left, right, label)
                for label, places in zip((True, False), picked, strict=True)
                for left, right in places
            ]
            shuffled = tuple(pairs[index] for index in rng.permutation(len(pairs)))
            return StatementGroup(statement, kind, shuffled)
    raise InputError("no statement is true of two pairs and false of two: take other scenes")


def statement_vocabulary() -> tuple[str, ...]:
    """The words of statements that captions, kinds and questions do not have."""
    words = "total in both images contain only one image contains neither has more than exactly"
    words += " have the same number of is there are"
    return tuple(sorted({*words.split(), *NUMBERS} - {"the", "there", "are", "is"}))


def _pick(
    counts: NDArray[np.int64], allowed: NDArray[np.bool_], rng: RandomState
) -> list[tuple[int, int]]:
    """Two different places in ``allowed`` (scenes, scenes), fewer where there are fewer."""
    left, right = np.nonzero(allowed)
    both = counts[left] * len(counts) + counts[right]
    picked: list[int] = []
    for _ in range(min(2, len(left))):
        free = np.setdiff1d(np.arange(len(left)), picked)
        values = np.unique(both[free])
        free = free[both[free] == values[draw_integer(rng, 0, len(values))]]
        picked.append(int(free[draw_integer(rng, 0, len(free))]))
    return [(int(left[index]), int(right[index])) for index in picked]


# Each form takes a kind and how often it is in each scene (N,), and gives a statement and for
# which pairs (left, right) it is true (N, N).
Stated = tuple[str, NDArray[np.bool_]]


def _total(kind: Kind, counts: NDArray[np.int64], rng: RandomState) -> Stated:
    total = counts[:, None] + counts
    places = np.argwhere(total > 0)
    left, right = places[draw_integer(rng, 0, len(places))]
    number = int(total[left, right])
    verb = "is" if number == 1 else "are"
    return f"there {verb} {_number(number, kind)} in total", total == number


def _exactly(kind: Kind, counts: NDArray[np.int64], rng: RandomState) -> Stated:
    values = np.unique(counts[counts > 0])
    number = int(values[draw_integer(rng, 0, len(values))])
    side = draw_integer(rng, 0, 2)
    text = f"the {_SIDES[side]} image contains exactly {_number(number, kind)}"
    here = (counts[:, None], counts[None, :])[side] == number
    return text, np.broadcast_to(here, (len(counts), len(counts)))


def _more(kind: Kind, counts: NDArray[np.int64], rng: RandomState) -> Stated:
    side = draw_integer(rng, 0, 2)
    text = f"the {_SIDES[side]} image has more {kind.plural} than the {_SIDES[1 - side]} image"
    true = counts[:, None] > counts
    return text, true.T if side else true


def _same(kind: Kind, counts: NDArray[np.int64], rng: RandomState) -> Stated:
    return f"both images have the same number of {kind.plural}", counts[:, None] == counts


def _both(kind: Kind, counts: NDArray[np.int64], rng: RandomState) -> Stated:
    here = counts > 0
    return f"both images contain {kind.indefinite}", here[:, None] & here


def _only(kind: Kind, counts: NDArray[np.int64], rng: RandomState) -> Stated:
    here = counts > 0
    return f"only one image contains {kind.indefinite}", here[:, None] ^ here


def _neither(kind: Kind, counts: NDArray[np.int64], rng: RandomState) -> Stated:
    none = counts == 0
    return f"neither image contains {kind.indefinite}", none[:, None] & none


_FORMS = (_total, _exactly, _more, _same, _both, _only, _neither)


def _number(number: int, kind: Kind) -> str:
    return f"{NUMBERS[number - 1]} {kind.singular if number == 1 else kind.plural}"
