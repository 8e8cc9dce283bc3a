"""Strips, animations and kept tokens as pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from turbovlm_workbench.analyze.maps import KeptMap, MergeStep, PictureMaps
from turbovlm_workbench.report.maps import (
    GAP,
    LINE,
    MAPS,
    SIDE,
    heat_map,
    kept_picture,
    kept_strip,
    map_file,
    map_strip,
    picture_uri,
    some_steps,
)

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def maps(blocks: int = 6) -> PictureMaps:
    owner = np.arange(16).reshape(4, 4)
    steps = tuple(MergeStep(b, np.minimum(owner, 16 - b), 17 - b) for b in range(1, blocks + 1))
    sides = {"turbo r=1": steps, "redundancy r=1": steps}
    words = {"unmerged": "a <dog>", "turbo r=1": "a dog", "redundancy r=1": "x" * 500}
    return PictureMaps("photo.jpg", PICTURE, np.linspace(0, 1, 16).reshape(4, 4), sides, words)


def test_a_strip_has_a_row_for_the_picture_and_for_each_setting() -> None:
    strip = map_strip(maps())
    assert strip.size == (4 * (SIDE + GAP) + GAP, LINE + 3 * (2 * LINE + SIDE + GAP))
    panel = np.asarray(strip)[3 * LINE : 3 * LINE + SIDE, GAP : GAP + SIDE]
    large = Image.fromarray(PICTURE).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    assert panel.shape == np.asarray(large).shape
    assert np.abs(panel.astype(int) - np.asarray(large)).max() == 0
    assert picture_uri(strip).startswith("data:image/webp;base64,")


def test_some_steps_end_with_the_last_block() -> None:
    steps = maps(11).sides["turbo r=1"]
    assert [step.block for step in some_steps(steps)] == [2, 5, 8, 11]
    assert some_steps(steps[:3]) == list(steps[:3])


@pytest.mark.parametrize("kind", MAPS)
def test_files_hold_all_pictures(kind: str) -> None:
    with Image.open(io.BytesIO(map_file([maps(), maps()], kind))) as image:
        assert image.format == kind.removeprefix(".").upper()
        assert getattr(image, "n_frames", 1) == (7 if kind == ".gif" else 1)
        assert image.height > 2 * SIDE


def test_heat_rises_with_the_strength() -> None:
    heat = heat_map(np.zeros((8, 8, 3), dtype=np.uint8), np.array([[0.0, 0.3], [0.6, 1.0]]))
    brightness = [heat[y, x].sum() for y, x in ((0, 0), (0, 7), (7, 0), (7, 7))]
    assert brightness == sorted(brightness)
    assert len(set(brightness)) == 4


def test_tokens_that_go_are_dimmed() -> None:
    kept = np.array([[True, False], [False, True]])
    dark = np.zeros((64, 64, 3), dtype=np.uint8)
    found = KeptMap("a", dark, np.zeros((2, 2), dtype=np.int64), kept, {"all tokens": "a dog"})
    drawn = kept_picture(found)
    half = drawn.shape[0] // 2
    assert drawn[:half, :half].max() == 0
    assert drawn[half:, half:].max() == 0
    assert drawn[:half, half:].min() == 191
    assert kept_strip(found).width == 3 * (SIDE + GAP) + GAP
