"""The keys read once: what similarity is measured on, and the guide's logits."""

# kernels are written in Triton's own language, which type checkers take for Python
# pyright: reportCallIssue=false, reportArgumentType=false
# pyright: reportPossiblyUnboundVariable=false
# pyright: reportAssignmentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbovlm.kernels.triton.tile import aligned, power


@triton.jit(do_not_specialize=["N", "heads", "group"])
def look_kernel(
    K, ROW, BIAS, UNIT, LOGITS,
    k_b, k_h, k_n, k_d, row_b, row_h, row_d, bias_b, bias_n,
    N, heads, group, scale,
    D: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr,
    UNIT_K: tl.constexpr, HAS_ROW: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """One program for each tile of BN tokens and sample, over all heads of the keys."""
    n, c = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, WIDE)
    b = tl.program_id(1).to(tl.int64)
    n_ok, c_ok = n < N, c < D
    ok = n_ok[:, None] & c_ok[None, :]
    if HAS_BIAS:
        bias = tl.load(BIAS + b * bias_b + n * bias_n, mask=n_ok, other=0.0)
    total = tl.zeros([BN, WIDE], tl.float32)
    for h in range(0, heads):
        pointers = K + ((b * k_b + h * k_h) + n[:, None] * k_n) * UNIT_K + c[None, :] * k_d
        k = tl.load(pointers, mask=ok, other=0.0).to(tl.float32)
        total += k
        if HAS_ROW:
            for g in range(h * group, (h + 1) * group):
                row = tl.load(ROW + b * row_b + g * row_h + c * row_d, mask=c_ok, other=0.0)
                logits = tl.sum(k * row.to(tl.float32)[None, :], 1) * scale
                if HAS_BIAS:
                    logits += bias
                tl.store(LOGITS + (b * heads * group + g) * N + n, logits, mask=n_ok)
    mean = total / heads
    norm = tl.maximum(tl.sqrt(tl.sum(mean * mean, 1)), 1e-12)
    tl.store(UNIT + (b * N + n)[:, None] * D + c[None, :], mean / norm[:, None], mask=ok)


def launch_look(
    keys: Tensor, row: Tensor | None, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """See `turbovlm.kernels.ops.look`."""
    batch, heads, tokens, width = keys.shape
    asked = 0 if row is None else row.shape[1]
    options = {"device": keys.device, "dtype": torch.float32}
    unit = torch.empty(batch, tokens, width, **options)
    logits = torch.empty(batch, asked, tokens, **options)
    block = 16 if batch * tokens <= 4096 or width > 128 else 32
    step, strides = aligned(keys)
    look_kernel[(triton.cdiv(tokens, block), batch)](
        keys, unit if row is None else row, unit if bias is None else bias, unit, logits,
        *strides,
        *((0, 0, 0) if row is None else row.stride()),
        *((0, 0) if bias is None else bias.stride()),
        tokens, heads, asked // heads, scale,
        D=width, WIDE=power(width), BN=block, UNIT_K=step,
        HAS_ROW=row is not None, HAS_BIAS=bias is not None, num_warps=4,
    )  # fmt: skip
    return unit, logits
