"""Tokens on a few fixed random directions, which similarity in wide denoisers is measured on."""

from __future__ import annotations

import torch
from torch import Tensor

from turbovlm.maths.hashing import random_scores

SKETCH_WIDTH = 64
"""Fixed random directions that tokens are compared on, and that restoring has a slope along."""


def directions(width: int, device: torch.device) -> Tensor:
    """`SKETCH_WIDTH` fixed random directions of +-1, ``(width, 64)`` fp32."""
    drawn = random_scores(width * SKETCH_WIDTH, 0, 0, device)
    return torch.where(drawn < 0.5, -1.0, 1.0).view(width, SKETCH_WIDTH)


def sketch(x: Tensor, onto: Tensor | None = None) -> Tensor:
    """Tokens on `SKETCH_WIDTH` fixed random directions: ``(B, N, C)`` -> ``(B, N, 64)``.

    Distances keep their proportions to about an eighth, whatever C is (Johnson and Lindenstrauss),
    and matching costs as much as at the width of a head. Narrow tokens are left as they are.

    Args:
        x: the tokens.
        onto: their `directions`, where they are at hand.
    """
    width = x.shape[-1]
    if width <= SKETCH_WIDTH:
        return x
    return x @ (directions(width, x.device) if onto is None else onto).to(x)
