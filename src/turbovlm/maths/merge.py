"""Merge and restore: the size-weighted mean of every group, and its inverse on positions."""

from __future__ import annotations

import torch
from torch import Tensor

from turbovlm.maths import constants
from turbovlm.maths.plan import Plan

LOG_EMPTY = -1e4
"""log of size 0 (padding): far below any logit, yet finite in fp16, so no row becomes NaN."""


def merge(x: Tensor, size: Tensor | None, plan: Plan) -> tuple[Tensor, Tensor]:
    """Average every source into its destination, weighted by size (paper Psi_meg, Eq. 13).

    Only the ``r`` merged rows are touched: with S the group's total size,
    ``x_dst + sum (s_src / S) (x_src - x_dst)`` equals the size-weighted mean, and one gather
    of whole rows compacts the sequence.

    Args:
        x: ``(B, N, C)`` tokens.
        size: ``(B, N)`` fp32, how many original tokens each one stands for; None for one each.
        plan: what to merge.

    Returns:
        ``(B, N - r, C)`` in x's dtype and ``(B, N - r)`` fp32. The sizes of each row sum to
        what they did before.
    """
    batch, tokens, width = x.shape
    if size is None:
        size = torch.ones(batch, tokens, dtype=torch.float32, device=x.device)
    own = size.gather(1, plan.source)
    total = size.scatter_add(1, plan.destination, own)
    weight = own / total.gather(1, plan.destination)
    rows = x.reshape(batch * tokens, width)
    kept = rows.index_select(0, row_numbers(plan.keep, tokens))
    source = rows.index_select(0, row_numbers(plan.source, tokens))
    target = rows.index_select(0, row_numbers(plan.destination, tokens))
    change = (source - target) * weight.view(-1, 1).to(x.dtype)
    slot = row_numbers(plan.slot, plan.keep.shape[1])
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        # the older ONNX exporter writes a wrong graph for index_add with repeated indices
        kept = kept.scatter_add(0, slot.unsqueeze(1).expand_as(change), change)
    else:
        kept.index_add_(0, slot, change)  # fresh memory: nothing else reads it
    return kept.view(batch, -1, width), total.gather(1, plan.keep)


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
    rows = x.reshape(batch * tokens, width).index_select(0, row_numbers(positions, tokens))
    return rows.view(batch, -1, width)


def size_bias(size: Tensor) -> Tensor:
    """Proportional attention (supplementary Eq. 2): ``log size`` ``(B, N)``, finite at size 0."""
    return size.log().clamp_min_(LOG_EMPTY)


def row_numbers(positions: Tensor, tokens: int) -> Tensor:
    """Positions within each sample ``(B, K)`` -> row numbers of the flattened batch ``(B K,)``."""
    batch = positions.shape[0]
    if batch == 1:
        return positions.flatten()
    start = constants.positions(0, batch * tokens, tokens, positions.device)
    return (positions + start.unsqueeze(1)).flatten()
