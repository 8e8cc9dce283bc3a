"""Short words printed into scenes: the fine detail that a picture of shapes has not.

`worded_scene` prints two to four letters into a free cell of the scene of a seed, three times in
four. The letters are drawn at random, so that a word must be read and cannot be guessed from its
beginning. Each lies within one patch of 16 px: what loses a token loses a letter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from turbovlm_lab.scenes import CELL_EDGES, GRID, Scene, Word, draw_integer, scene

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST = 4
PITCH = 16  # pixels from one letter to the next: a patch
NO_WORD = "none"
WORD_QUESTION = "what word is printed?"
_WIDTH, _HEIGHT, _SCALE = 5, 7, 2  # of a letter, in dots, and pixels a dot
_INKS = (15, 250)
_STREAM = 7  # the second word of the seed: the scene beneath is drawn as it always was

# Seven rows of five dots a letter, the leftmost dot the highest bit.
_DOTS = {
    "A": (14, 17, 17, 31, 17, 17, 17),
    "B": (30, 17, 17, 30, 17, 17, 30),
    "C": (14, 17, 16, 16, 16, 17, 14),
    "D": (30, 17, 17, 17, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "F": (31, 16, 16, 30, 16, 16, 16),
    "G": (14, 17, 16, 23, 17, 17, 14),
    "H": (17, 17, 17, 31, 17, 17, 17),
    "I": (14, 4, 4, 4, 4, 4, 14),
    "J": (7, 2, 2, 2, 2, 18, 12),
    "K": (17, 18, 20, 24, 20, 18, 17),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "M": (17, 27, 21, 21, 17, 17, 17),
    "N": (17, 25, 21, 19, 17, 17, 17),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "Q": (14, 17, 17, 17, 21, 18, 13),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "S": (15, 16, 16, 14, 1, 1, 30),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "U": (17, 17, 17, 17, 17, 17, 14),
    "V": (17, 17, 17, 17, 17, 10, 4),
    "W": (17, 17, 17, 21, 21, 27, 17),
    "X": (17, 17, 10, 4, 10, 17, 17),
    "Y": (17, 17, 10, 4, 4, 4, 4),
    "Z": (31, 1, 2, 4, 8, 16, 31),
}


def worded_scene(seed: int) -> Scene:
    """The scene of ``seed`` with a word in one of its free cells, or (one time in four) without.

    Args:
        seed: 0 to 2**32 - 1, as for `turbovlm_lab.scenes.scene`.
    """
    plain = scene(seed)
    rng = RandomState([seed, _STREAM])
    if draw_integer(rng, 0, 4) == 0:
        return plain
    free = free_cells(plain)
    image = plain.image.copy()
    word = print_word(image, *free[draw_integer(rng, 0, len(free))], rng)
    return replace(plain, image=image, word=word)


def word_question(word: Word | None) -> tuple[str, str, str]:
    """The question for the printed word, its answer, and its topic, ``"word"``."""
    return WORD_QUESTION, NO_WORD if word is None else word.text, "word"


def free_cells(plain: Scene) -> list[tuple[int, int]]:
    """Row and column of the cells without a shape, four at least."""
    taken = {(item.row, item.column) for item in plain.objects}
    cells = [divmod(cell, GRID) for cell in range(GRID * GRID)]
    return [cell for cell in cells if cell not in taken]


def print_word(image: NDArray[np.uint8], row: int, column: int, rng: RandomState) -> Word:
    """Print a word drawn from ``rng`` into a cell of ``image`` (224, 224, 3), in place."""
    text = "".join(
        LETTERS[draw_integer(rng, 0, len(LETTERS))]
        for _ in range(draw_integer(rng, 2, LONGEST + 1))
    )
    left = _patch(rng, column, len(text)) + draw_integer(rng, 0, PITCH - _WIDTH * _SCALE + 1)
    top = _patch(rng, row, 1) + draw_integer(rng, 0, PITCH - _HEIGHT * _SCALE + 1)
    ink = _INKS[draw_integer(rng, 0, len(_INKS))]
    for index, letter in enumerate(text):
        x = left + index * PITCH
        image[top : top + _HEIGHT * _SCALE, x : x + _WIDTH * _SCALE][letter_mask(letter)] = ink
    return Word(text, row, column, left, top)


def letter_mask(letter: str) -> NDArray[np.bool_]:
    """Pixels covered by a capital letter: bool (14, 10)."""
    dots = [[row >> (_WIDTH - 1 - at) & 1 for at in range(_WIDTH)] for row in _DOTS[letter]]
    return np.array(dots, dtype=bool).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)


def patch_letters(words: Iterable[Word], side: int) -> NDArray[np.int64]:
    """The letter that each of ``side`` x ``side`` patches shows, from 1 on, 0 for none: flat."""
    shown = np.zeros((side, side), dtype=np.int64)
    for word in words:
        for index, letter in enumerate(word.text):
            at = word.top // PITCH, word.left // PITCH + index
            shown[at] = 1 + LETTERS.index(letter)
    return shown.reshape(-1)


def _patch(rng: RandomState, cell: int, patches: int) -> int:
    """The left (or top) pixel of a run of patches within a column (or row) of cells."""
    first = -(-CELL_EDGES[cell] // PITCH)
    last = CELL_EDGES[cell + 1] // PITCH - patches
    return PITCH * draw_integer(rng, first, last + 1)
