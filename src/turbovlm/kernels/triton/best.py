"""The best destination of every source: similarity and arg max, the map is never stored."""

# kernels are written in Triton's own language, which type checkers take for Python
# pyright: reportCallIssue=false, reportArgumentType=false
# pyright: reportPossiblyUnboundVariable=false
# pyright: reportAssignmentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbovlm.kernels.triton.tile import PRECISION, load_rows, split_width
from turbovlm.maths.sets import EvenOdd

# first part of d: sources, destinations, warps, stages
TILES = {128: (16, 32, 4, 1), 256: (16, 32, 4, 1)}
SMALL_TILES = (32, 64, 4, 2)


@triton.jit(do_not_specialize=["N", "S", "T", "first_source", "first_destination"])
def best_kernel(
    UNIT, COUNT, VALUE, INDEX, N, S, T, first_source, first_destination,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BS: tl.constexpr, BT: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program for each tile of BS sources and sample. UNIT is (B, N, D), contiguous."""
    FULL: tl.constexpr = D0 <= D
    i, c0 = tl.program_id(0) * BS + tl.arange(0, BS), tl.arange(0, D0)
    b = tl.program_id(1).to(tl.int64)
    count = N
    if PADDED:
        count = tl.load(COUNT + b).to(tl.int32)
    base = UNIT + b * N * D
    source0 = load_rows(base, first_source + 2 * i, c0, D, 1, i < S, D, FULL)
    if D1 > 0:
        c1 = D0 + tl.arange(0, D1)
        source1 = load_rows(base, first_source + 2 * i, c1, D, 1, i < S, D, False)
    best = tl.full([BS], float("-inf"), tl.float32)
    index = tl.zeros([BS], tl.int32)
    for start in range(0, T, BT):
        j = start + tl.arange(0, BT)
        place = first_destination + 2 * j
        open_ = (j < T) & (place < count)
        other0 = load_rows(base, place, c0, D, 1, j < T, D, FULL)
        cosine = tl.dot(source0, tl.trans(other0), input_precision=PRECISION)
        if D1 > 0:
            other1 = load_rows(base, place, c1, D, 1, j < T, D, False)
            cosine = tl.dot(source1, tl.trans(other1), cosine, input_precision=PRECISION)
        # NaN never compares as the best: the index stays within the destinations
        cosine = tl.where(open_[None, :] & (cosine == cosine), cosine, float("-inf"))
        value, at = tl.max(cosine, 1, return_indices=True)
        better = value > best  # strictly: the lowest index wins a tie, as in torch
        index = tl.where(better, start + at, index)
        best = tl.where(better, value, best)
    tl.store(VALUE + b * S + i, best, mask=i < S)
    tl.store(INDEX + b * S + i, index, mask=i < S)


def launch_best(unit: Tensor, prefix: int, count: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `turbovlm.kernels.ops.best_destinations`."""
    batch, tokens, width = unit.shape
    sets = EvenOdd(tokens, prefix)
    sources = sets.source_count
    value = torch.empty(batch, sources, device=unit.device, dtype=torch.float32)
    index = torch.empty(batch, sources, device=unit.device, dtype=torch.int32)
    first, second = split_width(width)
    rows, across, warps, stages = TILES.get(first, SMALL_TILES)
    best_kernel[(triton.cdiv(sources, rows), batch)](
        unit, index if count is None else count, value, index,
        tokens, sources, sets.destination_count, sets.first_source, sets.first_destination,
        D=width, D0=first, D1=second, BS=rows, BT=across,
        PADDED=count is not None, PRECISION=PRECISION, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return value, index
