"""How far two pictures of the same size are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from turbovlm.errors import InputError

LEVELS = 255


@dataclass(frozen=True)
class Gap:
    """How far two pictures are apart, in levels from 0 to 255.

    Attributes:
        mean: of the absolute difference, over pixels and colours.
        squared: mean of its square.
    """

    mean: float
    squared: float


def levels(one: Image.Image, other: Image.Image) -> NDArray[np.int16]:
    """Absolute difference ``(height, width, 3)``, in levels from 0 to 255.

    Raises:
        InputError: if their sizes differ.
    """
    if one.size != other.size:
        raise InputError(
            f"pictures of {one.width} x {one.height} and {other.width} x {other.height} pixels "
            "cannot be compared: draw both at one size"
        )
    first, second = (np.asarray(image.convert("RGB"), dtype=np.int16) for image in (one, other))
    return np.abs(first - second)


def gap(one: Image.Image, other: Image.Image) -> Gap:
    """The mean over all pixels.

    Raises:
        InputError: if their sizes differ.
    """
    found = levels(one, other).astype(np.float64)
    return Gap(float(found.mean()), float(np.square(found).mean()))


def psnr(gaps: Sequence[Gap]) -> float | None:
    """Peak signal-to-noise ratio in dB of the mean squared error over pictures of one size.

    ``10 log10(255^2 / MSE)``; None where no pixel differs, as it has no bound there.
    """
    error = fmean(gap.squared for gap in gaps)
    return 10 * math.log10(LEVELS**2 / error) if error else None
