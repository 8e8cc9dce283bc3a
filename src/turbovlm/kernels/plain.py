"""What each kernel computes, with torch: where Triton does not run, and what tests compare with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbovlm.maths.match import Padding, nearest, unit_rows, with_padding
from turbovlm.maths.merge import merge, size_bias
from turbovlm.maths.plan import Plan, complete
from turbovlm.maths.score import Context, semantic_value, turbo
from turbovlm.maths.sets import EvenOdd


def torch_attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """See `turbovlm.kernels.ops.attend`."""
    mask = bias[:, None, None].to(q.dtype)  # a wider mask is wrong without a word on some devices
    grouped = k.shape[1] != q.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def torch_look(
    keys: Tensor, row: Tensor | None, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """See `turbovlm.kernels.ops.look`."""
    laid = keys.transpose(1, 2)  # as a joint projection lies in memory: no product copies the keys
    unit = unit_rows(laid.mean(2))
    if row is None:
        return unit, unit.new_empty(keys.shape[0], 0, keys.shape[2])
    laid = laid.repeat_interleave(row.shape[1] // keys.shape[1], 2)
    logits = ((laid * row.unsqueeze(1)).sum(-1).transpose(1, 2) * scale).float()
    return unit, (logits if bias is None else logits + bias.unsqueeze(1)).contiguous()


def torch_best(unit: Tensor, prefix: int, count: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `turbovlm.kernels.ops.best_destinations`."""
    tokens = unit.shape[1]
    real = None if count is None else torch.arange(tokens, device=unit.device) < count
    value, index = nearest(unit, EvenOdd(tokens, prefix), real=real)
    return value, index.int()


def torch_plan(
    score: Tensor,
    partner: Tensor,
    logits: Tensor | None,
    amounts: tuple[int, int, int],
    weight: tuple[float | None, float],
    padding: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `turbovlm.kernels.ops.make_plan`."""
    r, tokens, prefix = amounts
    sets = EvenOdd(tokens, prefix)
    degree = score
    if logits is not None:
        degree = _degree(score, logits, sets, weight, padding)
    # ascending, as the kernel writes them; a stable sort, so that the lower index wins a tie
    order = degree.sort(dim=1, descending=True, stable=True).indices[:, :r]
    if padding is None:
        order = order.sort(dim=1).values
    source = sets.source_positions(order)
    destination = sets.destination_positions(partner.long().gather(1, order))
    if padding is not None:
        first = sets.destination_positions(order.new_zeros(()))
        source, destination = with_padding(source, destination, Padding(*padding), tokens, first)
    made, _ = complete(source, destination, tokens)
    return source, destination, made.keep.contiguous(), made.slot


def torch_merge(
    x: Tensor, branch: Tensor | None, size: Tensor | None, plan: Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """See `turbovlm.kernels.ops.merge_tokens`."""
    merged, new = merge(x if branch is None else x + branch, size, plan)
    return merged, new, size_bias(new)


def _degree(
    redundancy: Tensor,
    logits: Tensor,
    sets: EvenOdd,
    weight: tuple[float | None, float],
    padding: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """E of the method ``turbo``, -inf for padding and where no destination is open."""
    value = sets.sources(semantic_value(logits))
    alpha, share = weight
    if padding is None:
        return turbo(redundancy, value, Context(sets.tokens, alpha=alpha, share=share))
    count = padding[0]
    real = sets.sources(torch.arange(sets.tokens, device=count.device) < count)
    degree = turbo(redundancy, value, Context(count, alpha=alpha, share=share, real=real))
    return degree.masked_fill(~real | (redundancy == -torch.inf), -torch.inf)
