"""The plan: information degree, the r highest, and who survives where; one program a sample."""

# kernels are written in Triton's own language, which type checkers take for Python
# pyright: reportCallIssue=false, reportArgumentType=false
# pyright: reportPossiblyUnboundVariable=false
# pyright: reportAssignmentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbovlm.kernels.triton.tile import power
from turbovlm.maths.score import COPY, SEMANTIC_SCALE
from turbovlm.maths.sets import EvenOdd

MOST = 4096
"""Sources that one program holds; above it torch computes the plan."""
TILE = 16384
"""Logits that are held at a time: several heads of a short sequence, one of a long one."""


@triton.jit
def _semantic_value(
    LOGITS, position, is_source, H, N, LANES: tl.constexpr, WIDE: tl.constexpr, HEADS: tl.constexpr
):
    """Eq. 8 at the sources: softmax of each head's row, averaged over heads."""
    n = tl.arange(0, WIDE)
    total = tl.zeros([LANES], tl.float32)
    for start in range(0, H, HEADS):
        h = start + tl.arange(0, HEADS)
        ok = (h < H)[:, None]
        rows = LOGITS + h[:, None] * N
        row = tl.load(rows + n[None, :], mask=ok & (n < N)[None, :], other=float("-inf"))
        row = tl.where(ok, row, 0.0)  # heads that are none: a softmax without NaN, and not counted
        top = tl.max(row, 1)[:, None]
        mass = tl.sum(tl.exp(row - top), 1)[:, None]
        own = tl.load(rows + position[None, :], mask=ok & is_source[None, :], other=float("-inf"))
        total += tl.sum(tl.exp(own - top) / mass, 0)
    return total / H


@triton.jit
def _highest(degree, is_source, count):
    """Mask of the ``count`` highest degrees; the lower index wins a tie, NaN is the highest."""
    bits = degree.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the numbers
    bits = tl.where(degree == 0, 0, bits)  # -0 is 0
    bits = tl.where(degree == degree, bits, 0x7FFFFFFF)
    key = tl.where(is_source, bits.to(tl.int64) + 0x80000000, -1)
    line = tl.full([], 0, tl.int64)
    for step in range(32):  # bit by bit, the highest line that `count` keys reach
        higher = line | (tl.full([], 1, tl.int64) << (31 - step))
        line = tl.where(tl.sum((key >= higher).to(tl.int32), 0) >= count, higher, line)
    above = key > line
    level = (key == line).to(tl.int32)
    room = count - tl.sum(above.to(tl.int32), 0)
    return above | ((level == 1) & (tl.cumsum(level, 0) <= room))


@triton.jit(
    do_not_specialize=[
        "H", "N", "S", "T", "r", "first_source", "first_destination", "prefix", "weight",
    ]
)  # fmt: skip
def plan_kernel(
    SCORE, PARTNER, LOGITS, COUNT, REMOVED, SOURCE, DESTINATION, KEEP, SLOT,
    H, N, S, T, r, first_source, first_destination, prefix, weight,
    READS_VALUE: tl.constexpr, FITTED: tl.constexpr, PADDED: tl.constexpr, COPY: tl.constexpr,
    LANES: tl.constexpr, WIDE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """SCORE is R where the value is read, else the degree. Lane i is source i and destination i."""
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, LANES)
    is_source = i < S
    position, place = first_source + 2 * i, first_destination + 2 * i
    count, removed = N, r
    if PADDED:
        count = tl.load(COUNT + b).to(tl.int32)
        removed = tl.minimum(tl.maximum(tl.load(REMOVED + b).to(tl.int32), 0), r)
    degree = tl.load(SCORE + b * S + i, mask=is_source, other=float("-inf"))
    if READS_VALUE:
        value = _semantic_value(LOGITS + b * H * N, position, is_source, H, N, LANES, WIDE, HEADS)
        scale = weight
        if FITTED:
            real = is_source & (position < count)
            distance = tl.where(real, tl.log(tl.maximum(1.0 - degree, COPY)), 0.0)
            mean = tl.sum(distance, 0) / tl.maximum(tl.sum(real.to(tl.int32), 0), 1)
            scale = tl.exp(mean) * count * weight
        # where no destination is open R is -inf, and such a source stays
        closed = degree == float("-inf")
        degree = tl.where(closed, degree, degree - scale * value)
        if PADDED:
            degree = tl.where(position < count, degree, float("-inf"))
    chosen = _highest(degree, is_source, removed)

    end = N - (r - removed)  # padding from here on is dropped
    gone = tl.cumsum(chosen.to(tl.int32), 0)  # up to source i
    before = tl.where(first_source < first_destination, gone, gone - chosen.to(tl.int32))
    keep = KEEP + b * (N - r)
    tl.store(keep + i, i.to(tl.int64), mask=i < prefix)
    tl.store(keep + position - gone, position.to(tl.int64),
             mask=is_source & (chosen == 0) & (position < end))  # fmt: skip
    slot = place - before
    tl.store(keep + slot, place.to(tl.int64), mask=(i < T) & (place < end))
    partner = tl.load(PARTNER + b * S + i, mask=is_source, other=0)
    nth = b * r + gone - 1
    tl.store(SOURCE + nth, position.to(tl.int64), mask=chosen)
    tl.store(DESTINATION + nth, (first_destination + 2 * partner).to(tl.int64), mask=chosen)
    tl.store(SLOT + nth, tl.gather(slot, partner, 0).to(tl.int64), mask=chosen)
    if PADDED:
        # see `with_padding`: into the first destination, or into 0 where no real token goes
        spare = i < r - removed
        nth = b * r + removed + i
        goal = tl.where(removed > 0, first_destination, 0) + i * 0
        first_slot = tl.sum(tl.where(i == 0, slot, 0), 0)
        goal_slot = tl.where(removed > 0, first_slot, 0) + i * 0
        tl.store(SOURCE + nth, (N - 1 - i).to(tl.int64), mask=spare)
        tl.store(DESTINATION + nth, goal.to(tl.int64), mask=spare)
        tl.store(SLOT + nth, goal_slot.to(tl.int64), mask=spare)


def launch_plan(
    score: Tensor, partner: Tensor, logits: Tensor | None, amounts: tuple[int, int, int],
    weight: tuple[float | None, float], padding: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `turbovlm.kernels.ops.make_plan`."""
    r, tokens, prefix = amounts
    alpha, share = weight
    batch, sources = score.shape
    sets = EvenOdd(tokens, prefix)
    heads = 1 if logits is None else logits.shape[1]
    options = {"device": score.device, "dtype": torch.int64}
    source, destination, slot = (torch.empty(batch, r, **options) for _ in range(3))
    keep = torch.empty(batch, tokens - r, **options)
    wide = power(tokens)
    count, removed = (partner, partner) if padding is None else padding
    plan_kernel[(batch,)](
        score, partner, score if logits is None else logits, count, removed,
        source, destination, keep, slot,
        heads, tokens, sources, sets.destination_count, r,
        sets.first_source, sets.first_destination, prefix,
        share if alpha is None else alpha * SEMANTIC_SCALE,
        READS_VALUE=logits is not None, FITTED=alpha is None, PADDED=padding is not None,
        COPY=COPY, LANES=power(max(sources, sets.destination_count, prefix)),
        WIDE=wide, HEADS=min(power(heads, 1), max(1, TILE // wide)),
        num_warps=4 if wide <= 256 else 8 if wide <= 1024 else 16,
    )  # fmt: skip
    return source, destination, keep, slot
