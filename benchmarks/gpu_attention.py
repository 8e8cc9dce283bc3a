"""Attention alone: none, with the mask of ``log size`` that torch takes, and with the kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from gpu_timing import medians_ms
from torch import Tensor

from turbovlm.kernels import attend, available, use_kernels

Shape = tuple[int, int, int, int]
# batch, heads, tokens, head dimension
SHAPES: tuple[Shape, ...] = (
    (64, 16, 577, 64),
    (64, 16, 300, 64),
    (64, 12, 119, 64),
    (16, 16, 677, 88),
    (8, 16, 729, 72),
    (16, 8, 4096, 40),
    (1, 24, 4608, 128),
)
SMOKE: tuple[Shape, ...] = ((1, 2, 20, 24),)


def attention_row(shape: Shape, device: torch.device, dtype: torch.dtype, seconds: float) -> dict:
    """Milliseconds of each form at one shape, and how far the kernel is from the mask."""
    batch, heads, tokens, width = shape
    joint = torch.randn(batch, tokens, 3, heads, width, device=device, dtype=dtype)
    q, k, v = joint.permute(2, 0, 3, 1, 4).unbind(0)
    bias = torch.randint(1, 9, (batch, tokens), device=device).float().log()
    mask, scale = bias[:, None, None].to(dtype), width**-0.5

    def masked() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask)

    runs = {"none": lambda: F.scaled_dot_product_attention(q, k, v), "mask": masked}
    far = None
    with torch.no_grad():
        if available(device):
            use_kernels("triton")
            runs["ours"] = lambda: attend(q, k, v, bias, scale)
            far = (runs["ours"]() - masked()).abs().max().item()
        try:
            found = medians_ms(runs, device, seconds, rounds=50)
        finally:
            use_kernels("auto")
    return {"shape": list(shape), "ms": found, "difference_from_mask": far}
