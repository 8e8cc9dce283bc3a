"""Which inputs a kernel takes, and each kernel as an operator that compilers can follow.

Every function is registered with torch, so that ``torch.compile(fullgraph=True)``, export and
fake tensors see one operator with known shapes. Eager calls skip the dispatcher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turbovlm.kernels import plain
from turbovlm.kernels.switch import attempt, traced, wanted
from turbovlm.maths.plan import Plan
from turbovlm.maths.sets import EvenOdd

HALVES = (torch.bfloat16, torch.float16)
TYPES = (torch.float32, *HALVES)
WIDEST = 256
"""Head dimension up to which a tile of q, k and v fits."""
MOST_SAMPLES = 65535
"""The grid's last axis counts samples."""
MOST_SOURCES = 4096
"""Sources that one program of the plan holds."""
FARTHEST = 2**31 - 1
"""Offsets within a sample are 32-bit integers."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Proportional attention ``softmax(q k^T scale + bias) v`` (supplementary Eq. 2).

    Args:
        q: ``(B, H, N, d)``, any strides.
        k: ``(B, K, N, d)``, any strides; K divides H, and H / K queries share a head.
        v: like ``k``.
        bias: ``(B, N)`` fp32 that is added to the logits of each key: ``log size``.
        scale: of the products, ``d ** -0.5`` in most models.

    Returns:
        ``(B, H, N, d)`` in q's type, in memory ``(B, N, H, d)``.
    """
    if not wanted(q, k, v, bias) or not _attends(q, k, v, bias):
        return plain.torch_attend(q, k, v, bias, scale)
    if torch.is_autocast_enabled(q.device.type):  # which casts what fused attention is given
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if not q.dtype == k.dtype == v.dtype:
        return plain.torch_attend(q, k, v, bias, scale)
    return (_attend_op if traced(q) else _attend)(q, k, v, bias, scale)


def look(
    keys: Tensor, row: Tensor | None = None, bias: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """The keys read once: what similarity is measured on, and the guide's row of logits.

    Args:
        keys: ``(B, K, N, d)``, any strides; K divides H. Queries where these measure similarity.
        row: ``(B, H, d)`` the guide's query of every head: that of cls, or the mean query; None
            computes no logits.
        bias: ``(B, N)`` fp32 that is added to the logits: ``log size``.
        scale: of the products, ``d ** -0.5`` in most models.

    Returns:
        ``(B, N, d)`` fp32 keys averaged over heads, of length 1; ``(B, H, N)`` fp32 logits, or
        None without a row.
    """
    if not wanted(keys, row, bias) or not _in_reach(keys):
        unit, logits = plain.torch_look(keys, row, bias, scale)
    else:
        unit, logits = (_look_op if traced(keys) else _look)(keys, row, bias, scale)
    return unit, None if row is None else logits


def best_destinations(
    unit: Tensor, prefix: int, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The most similar destination of every source (Eq. 6).

    Args:
        unit: ``(B, N, d)`` fp32 of length 1, see `look`.
        prefix: number of prefix tokens, which are neither sources nor destinations.
        count: ``(B, 1)`` int64, how many tokens are not padding; it comes last.

    Returns:
        R ``(B, S)``, -inf where no destination is open, and int32 ``(B, S)`` the index in the
        destination set: the lowest of equals.
    """
    if not wanted(unit) or unit.dtype != torch.float32 or not _in_reach(unit):
        return plain.torch_best(unit, prefix, count)
    return (_best_op if traced(unit) else _best)(unit, prefix, count)


def make_plan(
    score: Tensor,
    partner: Tensor,
    logits: Tensor | None,
    amounts: tuple[int, int, int],
    weight: tuple[float | None, float] = (None, 1.0),
    padding: tuple[Tensor, Tensor] | None = None,
) -> Plan:
    """Merge the ``r`` sources with the highest degree into their partners.

    Args:
        score: ``(B, S)`` fp32: R where ``logits`` are given, else the degree itself.
        partner: ``(B, S)`` int32 indices into the destination set, see `best_destinations`.
        logits: ``(B, H, N)`` fp32 of the guide, bias included: the degree is then that of the
            method ``turbo``, ``R - weight A`` (Eq. 12).
        amounts: r, N and the number of prefix tokens.
        weight: alpha as configured, or None for the fitted one; and the share of the fitted one
            that the guide deserves.
        padding: ``(B, 1)`` int64 each: tokens that are not padding, and how many of r are merged
            among these. The rest of r is dropped from the padding at the end.

    Returns:
        The plan, its sources in ascending order, those dropped from the padding last.
    """
    r, tokens, _ = amounts
    alpha, share = weight
    known = score.dtype == torch.float32 and score.shape[1] <= MOST_SOURCES
    if r == 0 or not known or not wanted(score, logits):
        made = plain.torch_plan(score, partner, logits, amounts, weight, padding)
    else:
        call = _plan_op if traced(score) else _plan
        made = call(score, partner, logits, amounts, alpha, share, padding or ())
    source, destination, keep, slot = made
    return Plan(source, destination, keep, slot, tokens)


def merge_tokens(
    x: Tensor, size: Tensor | None, plan: Plan, branch: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Average every source into its destination, weighted by size (Eq. 13).

    Args:
        x: ``(B, N, C)`` tokens, any strides.
        size: ``(B, N)`` fp32, how many original tokens each one stands for; None for one each.
        plan: what to merge.
        branch: ``(B, N, C)`` that is added to ``x`` first: the block's residual add, without a
            pass through memory of its own.

    Returns:
        ``(B, N - r, C)`` in x's type; ``(B, N - r)`` fp32 sizes, and their logarithms, the bias
        of the next attention.
    """
    if not wanted(x, branch, size) or not _merges(x, branch):
        return plain.torch_merge(x, branch, size, plan)
    call = _merge_op if traced(x) else _merge
    return call(x, branch, size, (plan.source, plan.destination, plan.slot, plan.keep))


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    def kernel() -> Tensor:
        from turbovlm.kernels.triton.attend import launch_attend

        return launch_attend(q, k, v, bias, scale)

    return attempt("attend", q, kernel, lambda: plain.torch_attend(q, k, v, bias, scale))


def _look(
    keys: Tensor, row: Tensor | None, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    def kernel() -> tuple[Tensor, Tensor]:
        from turbovlm.kernels.triton.look import launch_look

        return launch_look(keys, row, bias, scale)

    return attempt("look", keys, kernel, lambda: plain.torch_look(keys, row, bias, scale))


def _best(unit: Tensor, prefix: int, count: Tensor | None) -> tuple[Tensor, Tensor]:
    def kernel() -> tuple[Tensor, Tensor]:
        from turbovlm.kernels.triton.best import launch_best

        return launch_best(unit.contiguous(), prefix, count)

    return attempt("best", unit, kernel, lambda: plain.torch_best(unit, prefix, count))


def _plan(
    score: Tensor,
    partner: Tensor,
    logits: Tensor | None,
    amounts: Sequence[int],
    alpha: float | None,
    share: float,
    padding: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r, tokens, prefix = amounts
    pair = (padding[0], padding[1]) if padding else None
    given = (logits, (r, tokens, prefix), (alpha, share), pair)

    def kernel() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from turbovlm.kernels.triton.plan import launch_plan

        return launch_plan(score.contiguous(), partner.contiguous(), *given)

    return attempt("plan", score, kernel, lambda: plain.torch_plan(score, partner, *given))


def _merge(
    x: Tensor, branch: Tensor | None, size: Tensor | None, plan: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    source, destination, slot, keep = plan

    def kernel() -> tuple[Tensor, Tensor, Tensor]:
        from turbovlm.kernels.triton.merge import launch_merge

        return launch_merge(x, branch, size, (source, slot, keep))

    def torch_path() -> tuple[Tensor, Tensor, Tensor]:
        whole = Plan(source, destination, keep, slot, x.shape[1])
        return plain.torch_merge(x, branch, size, whole)

    return attempt("merge", x, kernel, torch_path)


_attend_op = torch.library.custom_op("turbovlm::attend", _attend, mutates_args=())
_look_op = torch.library.custom_op("turbovlm::look", _look, mutates_args=())
_best_op = torch.library.custom_op("turbovlm::best", _best, mutates_args=())
_plan_op = torch.library.custom_op("turbovlm::plan", _plan, mutates_args=())
_merge_op = torch.library.custom_op("turbovlm::merge", _merge, mutates_args=())


@_attend_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    return q.transpose(1, 2).new_empty(q.transpose(1, 2).shape).transpose(1, 2)


@_look_op.register_fake
def _(keys: Tensor, row: Tensor | None, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    batch, _, tokens, width = keys.shape
    asked = 0 if row is None else row.shape[1]
    unit = keys.new_empty(batch, tokens, width, dtype=torch.float32)
    return unit, unit.new_empty(batch, asked, tokens)


@_best_op.register_fake
def _(unit: Tensor, prefix: int, count: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = unit.shape[0], EvenOdd(unit.shape[1], prefix).source_count
    return unit.new_empty(shape), unit.new_empty(shape, dtype=torch.int32)


@_plan_op.register_fake
def _(
    score: Tensor,
    partner: Tensor,
    logits: Tensor | None,
    amounts: Sequence[int],
    alpha: float | None,
    share: float,
    padding: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r, tokens, _ = amounts
    batch = score.shape[0]
    pairs = [score.new_empty(batch, r, dtype=torch.int64) for _ in range(3)]
    keep = score.new_empty(batch, tokens - r, dtype=torch.int64)
    return pairs[0], pairs[1], keep, pairs[2]


@_merge_op.register_fake
def _(
    x: Tensor, branch: Tensor | None, size: Tensor | None, plan: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    kept = plan[3].shape[1]
    out = x.new_empty(x.shape[0], kept, x.shape[2])
    size, log = (x.new_empty(x.shape[0], kept, dtype=torch.float32) for _ in range(2))
    return out, size, log


def _attends(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> bool:
    """Whether the shapes are those of self-attention with one bias for each key."""
    batch, heads, tokens, width = q.shape
    return (
        k.shape == v.shape
        and (k.shape[0], *k.shape[2:]) == (batch, tokens, width)
        and heads % k.shape[1] == 0
        and bias.shape == (batch, tokens)
        and all(_in_reach(x) for x in (q, k, v))
    )


def _merges(x: Tensor, branch: Tensor | None) -> bool:
    if branch is not None and (
        branch.shape != x.shape or torch.promote_types(x.dtype, branch.dtype) != x.dtype
    ):
        return False
    return _in_reach(x, width=None) and (branch is None or _in_reach(branch, width=None))


def _in_reach(x: Tensor, width: int | None = WIDEST) -> bool:
    """Whether a kernel can address ``x``, and hold its last dimension."""
    if x.dtype not in TYPES or not 0 < x.shape[0] <= MOST_SAMPLES or 0 in x.shape:
        return False
    if width is not None and x.shape[-1] > width:
        return False
    sample = zip(x.shape[1:], x.stride()[1:], strict=True)
    return sum((count - 1) * stride for count, stride in sample) <= FARTHEST
