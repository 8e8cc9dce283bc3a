"""Questions about a scene, each with one right answer from a small vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from numpy.random import RandomState

from turbovlm_lab.grammar import ATTRIBUTES, Describable
from turbovlm_lab.kinds import VALUES, Kind, another, kind_of, some
from turbovlm_lab.scenes import MAX_OBJECTS, draw_integer

# Digits, as the answers of VQAv2 are compared after number words became digits.
ANSWERS = (
    *(value for values in VALUES.values() for value in values),
    *(str(number) for number in range(MAX_OBJECTS + 1)),
    "yes",
    "no",
)
_ABOUT = {
    "colour": "what colour is the {}?",
    "shape": "what shape is the {}?",
    "size": "what size is the {}?",
    "position": "where is the {}?",
}


class SceneQuestion(NamedTuple):
    """``topic`` is size, colour, shape, position, count or presence (answered yes or no), ``about``
    the kind of object that the question names."""

    text: str
    answer: str
    topic: str
    about: Kind


def ask(objects: Sequence[Describable], seed: int) -> tuple[SceneQuestion, ...]:
    """One question of every topic, two of presence; the same seed asks the same.

    Exactly one of the two about presence is answered yes, and they tell the same attributes, so
    that the words of a question do not give its answer away. A question about an attribute names
    an object by others of its attributes, just enough for one object to be meant; where no object
    can be named without its position, no question asks where it is.

    Args:
        objects: of the scene, at least one.
        seed: 0 to 2**32 - 1.
    """
    rng = RandomState(seed)
    asked = [q for name in ATTRIBUTES if (q := _about(objects, name, rng)) is not None]
    return (*asked, _count(objects, rng), *_presence(objects, rng))


def question_vocabulary() -> tuple[str, ...]:
    """The words of questions and answers that neither captions nor kinds have."""
    words = {word for text in _ABOUT.values() for word in text.replace("{}?", "?").split()}
    words |= {"how", "many", "are", "there", *ANSWERS[-MAX_OBJECTS - 3 :]}
    return tuple(sorted(words - {"the"}))


def _about(objects: Sequence[Describable], name: str, rng: RandomState) -> SceneQuestion | None:
    others = tuple(other for other in ATTRIBUTES if other != name)
    for index in rng.permutation(len(objects)):
        told = some(rng, others, len(others))
        for number in range(1, len(told) + 1):
            kind = kind_of(objects[index], told[:number])
            if kind.count(objects) == 1:
                text = _ABOUT[name].format(kind.singular)
                return SceneQuestion(text, getattr(objects[index], name), name, kind)
    return None


def _count(objects: Sequence[Describable], rng: RandomState) -> SceneQuestion:
    # Objects in all, or those of a size, a colour or a shape; one time in three that of another.
    item = objects[draw_integer(rng, 0, len(objects))]
    kind, which = Kind(), draw_integer(rng, 0, 4)
    if which < 3:
        kind = kind_of(item, ATTRIBUTES[which : which + 1])
        if draw_integer(rng, 0, 3) == 0:
            kind = another(rng, kind)
    text = f"how many {kind.plural} are there?"
    return SceneQuestion(text, str(kind.count(objects)), "count", kind)


def _presence(
    objects: Sequence[Describable], rng: RandomState
) -> tuple[SceneQuestion, SceneQuestion]:
    while True:
        item = objects[draw_integer(rng, 0, len(objects))]
        there = kind_of(item, some(rng, ATTRIBUTES, draw_integer(rng, 1, len(ATTRIBUTES) + 1)))
        absent = another(rng, there)
        if absent.count(objects) == 0:
            return (
                SceneQuestion(f"is there {there.indefinite}?", "yes", "presence", there),
                SceneQuestion(f"is there {absent.indefinite}?", "no", "presence", absent),
            )
