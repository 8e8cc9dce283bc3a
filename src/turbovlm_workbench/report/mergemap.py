"""Merge maps: every group of merged patches in its mean colour, with its outline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE = 448  # pixels that the shorter side of a map has at least, so that outlines are fine lines
OUTLINE = 0.45  # how much of the colour stays under an outline


def merge_map(picture: NDArray[np.uint8], owner: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Paint each group of patches in the mean colour of its pixels and outline it.

    Args:
        picture: uint8 (H, W, 3).
        owner: int64 (h, w): patches with the same number were merged into one token. A group
            need not be connected, since tokens merge by similarity and not by distance.

    Returns:
        uint8 (kH, kW, 3), the picture enlarged by a whole number k.
    """
    factor = max(1, -(-SIDE // min(picture.shape[:2])))
    height, width = (factor * extent for extent in picture.shape[:2])
    rows = np.arange(height) * owner.shape[0] // height
    columns = np.arange(width) * owner.shape[1] // width
    groups = np.unique(owner, return_inverse=True)[1].reshape(owner.shape)
    fine = groups[rows][:, columns]
    coarse = fine[::factor, ::factor].reshape(-1)
    weight = np.bincount(coarse)
    flat = picture.reshape(-1, 3).astype(np.float64)
    sums = [np.bincount(coarse, weights=flat[:, channel]) for channel in range(3)]
    painted = (np.stack(sums, axis=1) / weight[:, None])[fine]
    painted[_borders(fine)] *= OUTLINE
    return painted.round().astype(np.uint8)


def _borders(fine: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels next to a pixel of another group: bool (H, W), lines of two pixels."""
    border = np.zeros(fine.shape, dtype=bool)
    down, right = fine[1:] != fine[:-1], fine[:, 1:] != fine[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    return border
