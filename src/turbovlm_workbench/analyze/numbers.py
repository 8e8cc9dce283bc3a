"""The numbers of the analysis (section 3.2, Fig. 3), per sample and linear in the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from turbovlm.maths.match import unit_rows
from turbovlm.maths.merge import merge, restore
from turbovlm.maths.plan import Plan

QUARTER = 4
"""Attention concentration looks at the top 1 / QUARTER of the tokens."""


def token_redundancy(tokens: Tensor, counted: Tensor) -> Tensor:
    """Mean cosine similarity over all pairs of different tokens.

    With u the unit vectors, ``sum over i != j of u_i u_j = |sum of u|^2 - sum of |u_i|^2``: the
    mean vector is enough, and no N x N map is made.

    Args:
        tokens: ``(B, N, C)``.
        counted: ``(B, N)`` bool, which tokens count.

    Returns:
        ``(B,)`` fp32 or wider; NaN where fewer than two tokens count.
    """
    unit = unit_rows(tokens) * counted.unsqueeze(-1)
    pairs = counted.sum(1) * (counted.sum(1) - 1)
    together = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    return torch.where(pairs > 0, together / pairs.clamp_min(1), torch.nan)


def attention_concentration(value: Tensor, counted: Tensor) -> Tensor:
    """Share of the guide's attention that the top quarter of the tokens holds.

    Args:
        value: ``(B, N)`` semantic value A, see `turbovlm.maths.score.semantic_value`.
        counted: ``(B, N)`` bool, which tokens count; the share is of what these hold together.

    Returns:
        ``(B,)``; NaN where no token counts. The quarter is rounded down, to one token at least.
    """
    seen = value.masked_fill(~counted, 0).sort(dim=1, descending=True).values
    quarter = (counted.sum(1, keepdim=True) // QUARTER).clamp_min(1)
    top = (seen.cumsum(1)).gather(1, quarter - 1)[:, 0]
    return torch.where(counted.any(1), top / seen.sum(1), torch.nan)


def merge_error(tokens: Tensor, size: Tensor | None, plan: Plan) -> Tensor:
    """How far merged tokens are from the mean that replaces them, weighted by size.

    Args:
        tokens: ``(B, N, C)`` before the merge.
        size: ``(B, N)`` how many original tokens each one stands for; None for one each.
        plan: what is merged.

    Returns:
        ``(B,)``: ``sum of s |x - m| / sum of s |x|`` over the tokens that go into a group of this
        merge, m the mean of their group; 0 for copies, NaN where nothing but padding is merged.
    """
    if size is None:
        size = tokens.new_ones(tokens.shape[:2])
    means = restore(merge(tokens, size, plan)[0], plan.representative())
    joined = (size.gather(1, plan.source) > 0).to(size.dtype)
    member = torch.zeros_like(size)
    member = member.scatter_add(1, plan.source, joined).scatter_add(1, plan.destination, joined)
    weight = size * (member > 0)
    moved = (weight * (tokens - means).norm(dim=-1)).sum(1)
    return moved / (weight * tokens.norm(dim=-1)).sum(1)
