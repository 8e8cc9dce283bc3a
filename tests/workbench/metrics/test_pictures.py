"""Distances of pictures against values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from turbovlm.errors import InputError
from turbovlm_workbench.metrics.pictures import gap, levels, psnr


def plain(level: int, side: int = 4) -> Image.Image:
    return Image.new("RGB", (side, side), (level, 0, 0))


def test_one_colour_of_three_by_thirty_levels() -> None:
    found = gap(plain(10), plain(40))
    assert found.mean == pytest.approx(30 / 3)
    assert found.squared == pytest.approx(900 / 3)
    assert psnr([found]) == pytest.approx(10 * math.log10(255**2 / 300))
    assert np.array_equal(levels(plain(255), plain(0))[0, 0], [255, 0, 0])


def test_the_ratio_is_of_the_mean_error_and_has_no_bound_where_nothing_differs() -> None:
    same, other = gap(plain(7), plain(7)), gap(plain(0), plain(255))
    assert (same.mean, psnr([same, same])) == (0, None)
    assert psnr([same, other]) == pytest.approx(10 * math.log10(6))


def test_pictures_of_two_sizes_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="4 x 4 and 5 x 5 pixels cannot be compared"):
        gap(plain(1), plain(1, side=5))
