"""What the lab's vision-language model is asked about a scene, and where the answer is seen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from turbovlm_lab.data import patch_targets
from turbovlm_lab.grammar import describe
from turbovlm_lab.lettering import LETTERS, patch_letters, word_question
from turbovlm_lab.questions import ask
from turbovlm_lab.scenes import Object, Word, draw_integer
from turbovlm_lab.vlm import DESCRIBE, PATCH_ROWS, vlm_specials, vlm_vocabulary

SEEDS = 2**31 - 1
_IDS = {token: index for index, token in enumerate((*vlm_specials(), *vlm_vocabulary()))}
START, END = _IDS["[CLS]"], _IDS["[SEP]"]
_PIECE = re.compile(r"[A-Z]+|[a-z]+|\d|[^\s\w]")


class Told(NamedTuple):
    """A prompt and its answer.

    ``topic`` is caption, word, or that of a question; ``seen`` is bool (T, 196): the patches that
    each of the T tokens of the answer is to be read from, for training.
    """

    prompt: str
    answer: str
    topic: str
    seen: NDArray[np.bool_]


def vlm_tokens(text: str) -> list[int]:
    """Ids of a text, as the processor's tokenizer gives them; capital letters one by one."""
    ids = []
    for piece in _PIECE.findall(text):
        if piece[0] in LETTERS:
            ids += [_IDS[piece[0]], *(_IDS[f"##{letter}"] for letter in piece[1:])]
        else:
            ids.append(_IDS[piece])
    return ids


def tell_caption(objects: Sequence[Object]) -> Told:
    """The caption; a clause is read from the patches of its object."""
    answer = describe(objects)
    clause = np.cumsum([token == _IDS[","] for token in vlm_tokens(answer)])
    shown = patch_targets(objects)[:, 0]
    return Told(DESCRIBE, answer, "caption", shown == clause[:, None] + 1)


def tell_word(word: Word | None) -> Told:
    """The printed word, letter by letter, or that there is none."""
    patches = np.arange(PATCH_ROWS**2)
    at = np.flatnonzero(patch_letters([] if word is None else [word], PATCH_ROWS))
    # a word is one row of patches, left to right; nothing shows that there is none
    seen = patches == at[:, None] if word else np.zeros((1, len(patches)), dtype=bool)
    return Told(*word_question(word), seen)


def tell_questions(objects: Sequence[Object], seed: int) -> list[Told]:
    """The questions of `turbovlm_lab.questions.ask`; read from the objects that each names."""
    shown = patch_targets(objects)[:, 0]
    told = []
    for question in ask(objects, seed):
        named = [order for order, item in enumerate(objects, 1) if question.about.fits(item)]
        seen = np.isin(shown, named)[None].repeat(len(vlm_tokens(question.answer)), axis=0)
        told.append(Told(question.text, question.answer, question.topic, seen))
    return told


def lesson(
    objects: Sequence[Object], word: Word | None, rng: RandomState, questions: int
) -> list[Told]:
    """What one step asks about a scene: caption, word and some of the questions."""
    pool: list[Told] = []
    while len(pool) < questions:
        pool += tell_questions(objects, draw_integer(rng, 0, SEEDS))
    chosen = [pool[index] for index in rng.permutation(len(pool))[:questions]]
    return [tell_caption(objects), tell_word(word), *chosen]


def exam(objects: Sequence[Object], word: Word | None, seed: int) -> list[Told]:
    """Everything that is asked about a scene in an evaluation; the same seed asks the same."""
    return [tell_caption(objects), tell_word(word), *tell_questions(objects, seed)]
