"""Procedural scenes: a textured background with one to five coloured shapes on it.

A scene is a pure function of its seed. Every random draw comes from
``numpy.random.RandomState``, whose stream numpy has frozen, and every pixel is computed with
integers, so the same seed gives the same bytes on every machine and every numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

SIDE = 224
GRID = 3
MAX_OBJECTS = 5

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
SIZES = ("small", "large")
SIZE_PIXELS = {"small": (28, 36), "large": (56, 68)}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "orange": (245, 140, 20),
    "yellow": (245, 230, 40),
    "green": (35, 165, 55),
    "cyan": (45, 220, 225),
    "blue": (35, 65, 215),
    "purple": (145, 35, 190),
    "white": (245, 245, 245),
}
POSITIONS = (
    "top left",
    "top",
    "top right",
    "left",
    "centre",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
BACKGROUNDS = ("stripes", "checker", "gradient", "blotches")

CELL_EDGES = (0, 75, 149, SIDE)  # three columns (and rows) of 75, 74 and 75 pixels
_SPLIT_SEEDS = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}
_SPLIT_LENGTH = 1_000_000_000

# Polygon corners in thousandths of the half side, (x, y), y down.
_TRIANGLE = ((0, -1000), (1000, 1000), (-1000, 1000))
_STAR = (
    (0, -1000),
    (247, -340),
    (951, -309),
    (400, 130),
    (588, 809),
    (0, 421),
    (-588, 809),
    (-400, 130),
    (-951, -309),
    (-247, -340),
)


@dataclass(frozen=True)
class Object:
    """One shape of a scene.

    ``row`` and ``column`` (0 to 2) name the cell of the 3x3 grid that contains the whole shape;
    ``left``, ``top`` and ``side`` give its bounding square in pixels.
    """

    shape: str
    colour: str
    size: str
    row: int
    column: int
    left: int
    top: int
    side: int

    @property
    def position(self) -> str:
        """The cell in words, e.g. ``"top left"``."""
        return POSITIONS[self.row * GRID + self.column]


@dataclass(frozen=True)
class Word:
    """Capital letters printed into a scene: ``left`` and ``top`` are of the first, in pixels."""

    text: str
    row: int
    column: int
    left: int
    top: int


@dataclass(frozen=True, eq=False)
class Scene:
    """A rendered scene: ``image`` is uint8 (224, 224, 3) RGB, ``objects`` in reading order.

    ``word`` is None unless `turbovlm_lab.lettering.worded_scene` printed one.
    """

    seed: int
    image: NDArray[np.uint8]
    objects: tuple[Object, ...]
    word: Word | None = None

    @property
    def caption(self) -> str:
        """The sentence that describes the scene, as ``grammar.describe`` writes it."""
        from turbovlm_lab.grammar import describe  # the grammar imports this module's words

        return describe(self.objects)


def seed_of_split(name: str, index: int) -> int:
    """Seed of scene number ``index`` of the "train", "validation" or "test" split.

    The three splits own disjoint ranges of seeds, a thousand million each.
    """
    if name not in _SPLIT_SEEDS:
        raise ValueError(f"unknown split {name!r}; use one of {', '.join(_SPLIT_SEEDS)}")
    if not 0 <= index < _SPLIT_LENGTH:
        raise ValueError(f"index {index} is outside 0..{_SPLIT_LENGTH - 1}")
    return _SPLIT_SEEDS[name] + index


def scene(seed: int) -> Scene:
    """Render the scene of ``seed`` (0 to 2**32 - 1); the same seed gives the same bytes."""
    rng = RandomState(seed)
    objects = _draw_objects(rng)
    canvas = _background(rng)
    for item in objects:
        paint = np.asarray(COLOURS[item.colour]) + rng.randint(-10, 11, 3, dtype=np.int64)
        box = canvas[item.top : item.top + item.side, item.left : item.left + item.side]
        box[shape_mask(item.shape, item.side)] = paint
    strength = draw_integer(rng, 4, 10)
    canvas += rng.randint(-strength, strength + 1, (SIDE, SIDE, 1), dtype=np.int16)
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    return Scene(seed, image, objects)


def layout(seed: int) -> tuple[Object, ...]:
    """The objects of the scene of ``seed``, without its picture: fifteen times as fast."""
    return _draw_objects(RandomState(seed))


def shape_mask(shape: str, side: int) -> NDArray[np.bool_]:
    """Pixels covered by ``shape`` in its bounding square: bool (side, side)."""
    # Pixel centres in half pixels from the centre of the square: odd or even integers, never
    # fractions, so that no comparison below depends on rounding.
    axis = 2 * np.arange(side, dtype=np.int64) + 1 - side
    x, y = axis[None, :], axis[:, None]
    if shape == "square":
        return np.ones((side, side), dtype=bool)
    if shape in ("circle", "ring"):
        squared = x * x + y * y
        disc = squared <= side * side
        return disc if shape == "circle" else disc & (squared * 100 >= side * side * 30)
    if shape == "cross":
        return (np.abs(x) * 10 <= side * 3) | (np.abs(y) * 10 <= side * 3)
    if shape == "triangle":
        return _polygon(_TRIANGLE, x, y, side)
    if shape == "star":
        return _polygon(_STAR, x, y, side)
    raise ValueError(f"unknown shape {shape!r}; use one of {', '.join(SHAPES)}")


def _polygon(
    corners: tuple[tuple[int, int], ...], x: NDArray[np.int64], y: NDArray[np.int64], side: int
) -> NDArray[np.bool_]:
    px, py = x * 1000, y * 1000
    inside = np.zeros((side, side), dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ax, ay, bx, by = ax * side, ay * side, bx * side, by * side
        if ay == by:
            continue
        # Even-odd rule: flip every pixel whose rightward ray crosses the edge.
        crosses = (py < max(ay, by)) & (py >= min(ay, by))
        turn = (px - ax) * (by - ay) - (py - ay) * (bx - ax)
        inside ^= crosses & ((turn < 0) if by > ay else (turn > 0))
    return inside


def _draw_objects(rng: RandomState) -> tuple[Object, ...]:
    # Distinct cells keep objects apart; sorted cells put them in reading order.
    number = draw_integer(rng, 1, MAX_OBJECTS + 1)
    cells = np.sort(rng.permutation(GRID * GRID)[:number])
    objects = []
    for cell in cells:
        row, column = divmod(int(cell), GRID)
        size = SIZES[draw_integer(rng, 0, len(SIZES))]
        shape = SHAPES[draw_integer(rng, 0, len(SHAPES))]
        colour = tuple(COLOURS)[draw_integer(rng, 0, len(COLOURS))]
        low, high = SIZE_PIXELS[size]
        side = draw_integer(rng, low, high + 1)
        left = draw_integer(rng, CELL_EDGES[column] + 2, CELL_EDGES[column + 1] - side - 1)
        top = draw_integer(rng, CELL_EDGES[row] + 2, CELL_EDGES[row + 1] - side - 1)
        objects.append(Object(shape, colour, size, row, column, left, top, side))
    return tuple(objects)


def _background(rng: RandomState) -> NDArray[np.int16]:
    """A muted texture, int16 (224, 224, 3), near enough to 0..255 to be clipped later."""
    kind = BACKGROUNDS[draw_integer(rng, 0, len(BACKGROUNDS))]
    base = draw_integer(rng, 70, 141) + rng.randint(-15, 16, 3, dtype=np.int16)
    tint = rng.randint(-3, 4, 3, dtype=np.int16)
    contrast, period = draw_integer(rng, 10, 26), draw_integer(rng, 8, 33)
    across, down = ((1, 0), (0, 1), (1, 1), (1, -1))[draw_integer(rng, 0, 4)]
    axis = np.arange(SIDE, dtype=np.int16)
    ramp = across * axis[None, :] + down * axis[:, None] + SIDE
    if kind == "stripes":
        level = ramp // period % 2 * contrast
    elif kind == "checker":
        level = (axis[None, :] // period + axis[:, None] // period) % 2 * contrast
    elif kind == "gradient":
        level = ramp * contrast // SIDE
    else:
        coarse = rng.randint(0, contrast + 1, (28, 28), dtype=np.int16)
        level = coarse.repeat(8, axis=0).repeat(8, axis=1)
    level = level.astype(np.int16)[:, :, None]
    return base + level + tint * (level // 8)


def draw_integer(rng: RandomState, low: int, high: int) -> int:
    """An integer from ``low`` up to but not ``high``, the same on every platform."""
    # The default integer of randint differs between platforms; the type given here does not.
    return int(rng.randint(low, high, dtype=np.int64))
