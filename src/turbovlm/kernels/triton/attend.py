"""Attention with a bias for every key: flash attention that adds ``log size`` to the logits."""

# kernels are written in Triton's own language, which type checkers take for Python
# pyright: reportCallIssue=false, reportArgumentType=false
# pyright: reportPossiblyUnboundVariable=false
# pyright: reportAssignmentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbovlm.kernels.triton.tile import (
    INTERPRETED,
    PRECISION,
    aligned,
    load_rows,
    power,
    product,
    split_width,
)

# (first part of d, second part): rows, keys, warps, stages; measured at 64 on Hopper, the others
# chosen so that registers do not spill and shared memory stays below the 99 KiB of an Ampere card
TILES = {
    (16, 0): (128, 64, 4, 3),
    (32, 0): (128, 64, 4, 3),
    (32, 16): (128, 64, 4, 3),
    (64, 0): (128, 64, 4, 3),
    (64, 16): (128, 64, 8, 3),
    (64, 32): (128, 64, 8, 3),
    (128, 0): (128, 64, 8, 2),
    (128, 16): (128, 32, 8, 2),
    (128, 32): (128, 32, 8, 2),
    (128, 64): (128, 32, 8, 2),
    (256, 0): (64, 32, 8, 2),
}
FULL_TILES = {16: (64, 32, 4, 1), 32: (64, 32, 4, 1), 64: (64, 32, 8, 1), 128: (32, 32, 8, 1)}
"""The same for fp32, by the whole padded width: three products each, and twice the memory."""
WIDEST_TILES = (32, 16, 8, 1)
SHORT = 128
"""Up to this length half the rows a program leave no program nearly empty."""


@triton.jit(do_not_specialize=["N", "group"])
def attend_kernel(
    Q, K, V, BIAS, OUT,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, bias_b, bias_n,
    N, group, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    Q_UNIT: tl.constexpr, K_UNIT: tl.constexpr, V_UNIT: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One program for each tile of BM query rows, head and sample; OUT is (B, N, H, D)."""
    LOG2E: tl.constexpr = 1.4426950408889634
    FULL: tl.constexpr = D0 <= D
    h, H = tl.program_id(1), tl.num_programs(1)
    b = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    row_ok = rows < N
    c0 = tl.arange(0, D0)
    q_base = Q + (b * q_b + h * q_h) * Q_UNIT
    k_base = K + (b * k_b + (h // group) * k_h) * K_UNIT
    v_base = V + (b * v_b + (h // group) * v_h) * V_UNIT
    q_n, k_n, v_n = q_n * Q_UNIT, k_n * K_UNIT, v_n * V_UNIT
    q0 = load_rows(q_base, rows, c0, q_n, q_d, row_ok, D, FULL)
    out0 = tl.zeros([BM, D0], tl.float32)
    if D1 > 0:
        c1 = D0 + tl.arange(0, D1)
        q1 = load_rows(q_base, rows, c1, q_n, q_d, row_ok, D, False)
        out1 = tl.zeros([BM, D1], tl.float32)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    for start in range(0, N, BN):
        keys = start + tl.arange(0, BN)
        key_ok = keys < N
        k0 = load_rows(k_base, keys, c0, k_n, k_d, key_ok, D, FULL)
        logits = tl.zeros([BM, BN], tl.float32)
        logits = product(q0, tl.trans(k0), logits, PRECISION, WIDEN)
        if D1 > 0:
            k1 = load_rows(k_base, keys, c1, k_n, k_d, key_ok, D, False)
            logits = product(q1, tl.trans(k1), logits, PRECISION, WIDEN)
        bias = tl.load(BIAS + b * bias_b + keys * bias_n, mask=key_ok, other=float("-inf"))
        logits = logits * (scale * LOG2E) + bias[None, :] * LOG2E
        new = tl.maximum(top, tl.max(logits, 1))
        # a row without any finite logit so far: nothing may be subtracted from -inf
        base = tl.where(new == float("-inf"), 0.0, new)
        share = tl.exp2(logits - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(share, 1)
        v0 = load_rows(v_base, keys, c0, v_n, v_d, key_ok, D, FULL)
        share = share.to(v0.dtype)
        out0 = product(share, v0, out0 * shrink[:, None], PRECISION, WIDEN)
        if D1 > 0:
            v1 = load_rows(v_base, keys, c1, v_n, v_d, key_ok, D, False)
            out1 = product(share, v1, out1 * shrink[:, None], PRECISION, WIDEN)
        top = new
    total = tl.where(total == 0, 1.0, total)[:, None]
    out = OUT + ((b * N + rows) * H + h)[:, None] * D
    tl.store(out + c0[None, :], (out0 / total).to(OUT.dtype.element_ty),
             mask=row_ok[:, None] & (c0 < D)[None, :])  # fmt: skip
    if D1 > 0:
        tl.store(out + c1[None, :], (out1 / total).to(OUT.dtype.element_ty),
                 mask=row_ok[:, None] & (c1 < D)[None, :])  # fmt: skip


def tiles(width: int, tokens: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Rows, keys, warps and stages for a head dimension, a length and a type."""
    if dtype == torch.float32:
        return FULL_TILES.get(power(width), WIDEST_TILES)
    rows, keys, warps, stages = TILES[split_width(width)]
    if tokens <= SHORT and rows > 64:
        rows, warps = 64, 4
    return rows, keys, warps, stages


def launch_attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """See `turbovlm.kernels.ops.attend`."""
    batch, heads, tokens, width = q.shape
    out = torch.empty(batch, tokens, heads, width, device=q.device, dtype=q.dtype)
    rows, keys, warps, stages = tiles(width, tokens, q.dtype)
    first, second = split_width(width)
    (q_unit, q_by), (k_unit, k_by), (v_unit, v_by) = (aligned(x) for x in (q, k, v))
    attend_kernel[(triton.cdiv(tokens, rows), heads, batch)](
        q, k, v, bias, out, *q_by, *k_by, *v_by, *bias.stride(),
        tokens, heads // k.shape[1], scale,
        D=width, D0=first, D1=second, BM=rows, BN=keys,
        Q_UNIT=q_unit, K_UNIT=k_unit, V_UNIT=v_unit, PRECISION=PRECISION,
        WIDEN=INTERPRETED and q.dtype == torch.bfloat16,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out.transpose(1, 2)
