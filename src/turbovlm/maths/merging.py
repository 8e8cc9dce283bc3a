"""Merge and restore: the size-weighted mean of every group, and its inverse on positions."""

from __future__ import annotations

import torch
from torch import Tensor

from turbovlm.maths.matching import Plan

LOG_EMPTY = -1e4
"""log of size 0 (padding): far below any logit, yet finite in fp16, so no row becomes NaN."""


def merge(x: Tensor, size: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Average every source into its destination, weighted by size (paper Psi_meg, Eq. 13).

    Only the ``r`` merged rows are touched: with S the group's total size,
    ``x_dst + sum (s_src / S) (x_src - x_dst)`` equals the size-weighted mean, and one gather
    of whole rows compacts the sequence.

    Args:
        x: ``(B, N, C)`` tokens.
        size: ``(B, N)`` fp32, how many original tokens each one stands for.
        plan: what to merge.

    Returns:
        ``(B, N - r, C)`` in x's dtype and ``(B, N - r)`` fp32. The sizes of each row sum to
        what they did before.
    """
    total = size.scatter_add(1, plan.destination, size.gather(1, plan.source))
    weight = size.gather(1, plan.source) / total.gather(1, plan.destination).clamp_min(1e-12)
    source, target = take(x, plan.source), take(x, plan.destination)
    kept = take(x, plan.keep)
    change = (source - target) * weight.unsqueeze(-1).to(x.dtype)
    flat = kept.flatten(0, 1)  # fresh memory from take: adding in place harms nobody
    flat.index_add_(0, _rows(plan.slot, kept.shape[1]), change.flatten(0, 1))
    return flat.view_as(kept), total.gather(1, plan.keep)


def restore(x: Tensor, representative: Tensor) -> Tensor:
    """Give every original position the value of the token that stands for it.

    Args:
        x: ``(B, M, C)`` merged tokens.
        representative: ``(B, N)`` positions in ``0..M-1``.

    Returns:
        ``(B, N, C)``.
    """
    return take(x, representative)


def take(x: Tensor, positions: Tensor) -> Tensor:
    """Rows of ``x`` ``(B, N, C)`` at ``positions`` ``(B, K)``, as ``(B, K, C)``.

    One `index_select` over flattened rows: `gather` with an expanded index is five times slower.
    """
    batch, tokens, width = x.shape
    rows = x.reshape(batch * tokens, width).index_select(0, _rows(positions, tokens))
    return rows.view(batch, positions.shape[1], width)


def size_bias(size: Tensor) -> Tensor:
    """Proportional attention (supplementary Eq. 2): ``log size`` ``(B, N)``, finite at size 0."""
    return size.log().clamp_min(LOG_EMPTY)


def _rows(positions: Tensor, tokens: int) -> Tensor:
    """Positions within each sample -> row numbers of the flattened batch."""
    start = torch.arange(positions.shape[0], device=positions.device) * tokens
    return (positions + start.unsqueeze(1)).flatten()
