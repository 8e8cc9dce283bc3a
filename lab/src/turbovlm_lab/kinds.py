"""Kinds of objects: what a question or a statement speaks of, e.g. "large red circles"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from numpy.random import RandomState

from turbovlm_lab.grammar import ATTRIBUTES, Describable
from turbovlm_lab.scenes import COLOURS, POSITIONS, SHAPES, SIZES, draw_integer

VALUES = {"size": SIZES, "colour": tuple(COLOURS), "shape": SHAPES, "position": POSITIONS}
_PLURALS = {"cross": "crosses"}


class Kind(NamedTuple):
    """Some of the four attributes; None where any value will do."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    position: str | None = None

    def count(self, objects: Sequence[Describable]) -> int:
        """How many of ``objects`` are of this kind."""
        return sum(self.fits(item) for item in objects)

    def fits(self, item: Describable) -> bool:
        """Whether ``item`` is of this kind."""
        told = zip(self._fields, self, strict=True)
        return all(value is None or getattr(item, name) == value for name, value in told)

    @property
    def singular(self) -> str:
        """E.g. ``"large red circle at the top left"``; an object where no shape is told."""
        return self._words(self.shape or "object")

    @property
    def plural(self) -> str:
        """E.g. ``"small crosses"``."""
        noun = self.shape or "object"
        return self._words(_PLURALS.get(noun, f"{noun}s"))

    @property
    def indefinite(self) -> str:
        """The singular after ``a`` or ``an``."""
        words = self.singular
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def _words(self, noun: str) -> str:
        place = f"at the {self.position}" if self.position else None
        return " ".join(word for word in (self.size, self.colour, noun, place) if word)


def kind_of(item: Describable, names: Sequence[str]) -> Kind:
    """The kind of ``item`` that tells the attributes ``names`` and no others."""
    return Kind(**{name: getattr(item, name) for name in names})


def some(rng: RandomState, names: tuple[str, ...], number: int) -> list[str]:
    """``number`` different ones of ``names``, in random order."""
    return [names[index] for index in rng.permutation(len(names))[:number]]


def another(rng: RandomState, kind: Kind) -> Kind:
    """``kind`` with one of the attributes that it tells changed to another value."""
    told = [name for name in ATTRIBUTES if getattr(kind, name) is not None]
    name = told[draw_integer(rng, 0, len(told))]
    values = [value for value in VALUES[name] if value != getattr(kind, name)]
    return kind._replace(**{name: values[draw_integer(rng, 0, len(values))]})


def kind_vocabulary() -> tuple[str, ...]:
    """The words of kinds that captions do not have."""
    return ("an", "object", "objects", *(_PLURALS.get(noun, f"{noun}s") for noun in SHAPES))
