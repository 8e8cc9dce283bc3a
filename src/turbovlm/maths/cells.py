"""A coarse grid over a picture, so that no region and no frame loses all its tokens."""

from __future__ import annotations

import math

from torch import Tensor

TOKENS_PER_CELL = 4
"""Kept tokens for each cell: a quarter of them is placed by the grid at most, the rest is free."""


def frames(place: Tensor) -> int:
    """Number of frames, tiles or thumbnails among places ``(n, 3)``."""
    return len(place[:, 0].unique())


def cells(place: Tensor, keep: int) -> Tensor | None:
    """The cell of each token, as large as ``keep`` tokens allow.

    Args:
        place: ``(n, 3)`` frame, and height and width from 0 to 1.
        keep: how many tokens stay.

    Returns:
        ``(n,)`` int64, at most ``keep`` different values, or None where there are more frames
        than tokens to keep.
    """
    _, frame = place[:, 0].unique(return_inverse=True)
    count = int(frame.max()) + 1
    if keep < count:
        return None
    side = max(1, math.isqrt(keep // (TOKENS_PER_CELL * count)))
    at = (place[:, 1:] * side).long().clamp(0, side - 1)
    return (frame * side + at[:, 0]) * side + at[:, 1]
