"""Merging: survivors gathered and the mean of each group taken, without atomics."""

# kernels are written in Triton's own language, which type checkers take for Python
# pyright: reportCallIssue=false, reportArgumentType=false
# pyright: reportPossiblyUnboundVariable=false
# pyright: reportAssignmentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbovlm.kernels.triton.tile import PRECISION, power
from turbovlm.maths.merge import LOG_EMPTY


@triton.jit
def _tokens(X, BRANCH, n, c, ok, x_n, x_c, branch_n, branch_c, HAS_BRANCH: tl.constexpr):
    """Rows n of x, or of x + branch rounded to x's type as torch would round it."""
    x = tl.load(X + n[:, None] * x_n + c[None, :] * x_c, mask=ok, other=0.0)
    if HAS_BRANCH:
        more = tl.load(BRANCH + n[:, None] * branch_n + c[None, :] * branch_c, mask=ok, other=0.0)
        x = (x.to(tl.float32) + more.to(tl.float32)).to(x.dtype)
    return x.to(tl.float32)


@triton.jit(do_not_specialize=["N", "M", "r", "C"])
def merge_kernel(
    X, BRANCH, SIZE, SOURCE, SLOT, KEEP, OUT, NEW_SIZE, LOG_SIZE,
    x_b, x_n, x_c, branch_b, branch_n, branch_c, N, M, r, C,
    HAS_BRANCH: tl.constexpr, HAS_SIZE: tl.constexpr, LOG_EMPTY: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program for each tile of BM survivors, BC columns and sample.

    Who joins whom is a matrix (BM, BR) of sizes for every BR sources, and the sums of the groups
    its product with their rows: always in the same order, so the result is deterministic.
    """
    i, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BC + tl.arange(0, BC)
    b = tl.program_id(2).to(tl.int64)
    X += b * x_b
    BRANCH += b * branch_b
    i_ok, c_ok = i < M, c < C
    keep = tl.load(KEEP + b * M + i, mask=i_ok, other=0)
    own = tl.full([BM], 1.0, tl.float32)
    if HAS_SIZE:
        own = tl.load(SIZE + b * N + keep, mask=i_ok, other=1.0)
    joined = tl.zeros([BM, BC], tl.float32)
    mass = tl.zeros([BM], tl.float32)
    members = tl.zeros([BM], tl.int32)
    for start in range(0, r, BR):
        j = start + tl.arange(0, BR)
        j_ok = j < r
        slot = tl.load(SLOT + b * r + j, mask=j_ok, other=-1)
        source = tl.load(SOURCE + b * r + j, mask=j_ok, other=0)
        size = tl.full([BR], 1.0, tl.float32)
        if HAS_SIZE:
            size = tl.load(SIZE + b * N + source, mask=j_ok, other=0.0)
        joins = slot[None, :] == i[:, None]
        weight = tl.where(joins, size[None, :], 0.0)
        mass += tl.sum(weight, 1)
        members += tl.sum(joins.to(tl.int32), 1)
        ok = j_ok[:, None] & c_ok[None, :]
        rows = _tokens(X, BRANCH, source, c, ok, x_n, x_c, branch_n, branch_c, HAS_BRANCH)
        joined = tl.dot(weight, rows, joined, input_precision=PRECISION)
    ok = i_ok[:, None] & c_ok[None, :]
    x = _tokens(X, BRANCH, keep, c, ok, x_n, x_c, branch_n, branch_c, HAS_BRANCH)
    total = own + mass
    weighs = total > 0  # else a group of padding
    divisor = tl.where(weighs, total, 1.0)
    mean = (x * own[:, None] + joined) / divisor[:, None]
    # a token that nothing joined stays as it is, whatever stands in the other rows
    mean = tl.where((weighs & (members > 0))[:, None], mean, x)
    out = OUT + (b * M + i)[:, None] * C + c[None, :]
    tl.store(out, mean.to(OUT.dtype.element_ty), mask=ok)
    if tl.program_id(1) == 0:
        tl.store(NEW_SIZE + b * M + i, total, mask=i_ok)
        tl.store(LOG_SIZE + b * M + i, tl.where(weighs, tl.log(divisor), LOG_EMPTY), mask=i_ok)


def launch_merge(
    x: Tensor, branch: Tensor | None, size: Tensor | None, plan: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `turbovlm.kernels.ops.merge`."""
    source, slot, keep = (indices.contiguous() for indices in plan)
    batch, tokens, width = x.shape
    kept, r = keep.shape[1], source.shape[1]
    out = torch.empty(batch, kept, width, device=x.device, dtype=x.dtype)
    new, log = (torch.empty(batch, kept, device=x.device, dtype=torch.float32) for _ in range(2))
    rows, columns = 32, 128
    merge_kernel[(triton.cdiv(kept, rows), triton.cdiv(width, columns), batch)](
        x, x if branch is None else branch, x if size is None else size.contiguous(),
        source, slot, keep, out, new, log,
        *x.stride(), *((0, 0, 0) if branch is None else branch.stride()),
        tokens, kept, r, width,
        HAS_BRANCH=branch is not None, HAS_SIZE=size is not None, LOG_EMPTY=LOG_EMPTY,
        BM=rows, BC=columns, BR=min(32, power(r)),
        # half precision is exact in tf32, and sizes are up to 2048
        PRECISION=PRECISION if x.dtype == torch.float32 or PRECISION == "ieee" else "tf32",
        num_warps=4,
    )  # fmt: skip
    return out, new, log
