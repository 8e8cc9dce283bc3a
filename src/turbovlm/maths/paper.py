"""The fusion strategies of the supplementary (Eq. 3 to 6) as scores, to reproduce its tables.

A is multiplied by `SEMANTIC_SCALE`, as in the released code.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from turbovlm.maths.score import SEMANTIC_SCALE, Context, Score, turbo


def ratio_of(redundancy: Tensor, value: Tensor | None, _: Context) -> Tensor:
    """S2: ``R / A``; no factor changes its order."""
    assert value is not None
    return redundancy / (value * SEMANTIC_SCALE).clamp_min(torch.finfo(torch.float32).tiny)


def scaled_redundancy(redundancy: Tensor, value: Tensor | None, context: Context) -> Tensor:
    """S3: ``R (1 - alpha A)``."""
    assert value is not None
    assert context.alpha is not None
    return redundancy * (1 - context.alpha * SEMANTIC_SCALE * value)


def by_depth(
    redundancy: Tensor, value: Tensor | None, context: Context, *, beta: float, gamma: int
) -> Tensor:
    """S4: ``R - beta^|gamma - block| alpha A``, blocks counted from 1."""
    assert value is not None
    assert context.alpha is not None
    weight = beta ** abs(gamma - (context.block + 1)) * context.alpha * SEMANTIC_SCALE
    return torch.sub(redundancy, value, alpha=weight)


def fusion_score(fusion: str, beta: float, gamma: int) -> Score:
    """The score of a fusion strategy, ``"S1"`` to ``"S4"``."""
    alpha = frozenset({"alpha"})
    match fusion:
        case "S2":
            return Score("S2", ratio_of)
        case "S3":
            return Score("S3", scaled_redundancy, options=alpha)
        case "S4":
            return Score("S4", partial(by_depth, beta=beta, gamma=gamma), options=alpha)
        case _:
            return Score("S1", turbo, options=alpha)
