"""The same model costs the same from shapes alone, with fused attention, and materialised.

That the count equals what the paper publishes is in tests/tasks/test_paper.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import turbovlm
from turbovlm.measure import flops

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("r", [0, 4])
def test_meta_fused_and_eager_agree(r: int) -> None:
    """Patched or not."""

    def build() -> nn.Module:
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=64, embed_dim=48, num_heads=3, depth=2, num_classes=0
        )

    def count(model: nn.Module) -> tuple[int, tuple[str, ...]]:
        if r:
            turbovlm.apply(model, turbovlm.Merge(r=r))
        result = flops(model, torch.zeros(2, 3, 64, 64))
        return result.macs, tuple(result.by_op)

    with torch.device("meta"):
        shapes = build()
    fused, eager = build(), build()
    for module in eager.modules():
        if hasattr(module, "fused_attn"):
            module.__dict__["fused_attn"] = False
    macs, kernels = count(fused)
    assert "aten._scaled_dot_product_flash_attention_for_cpu" in kernels
    assert count(shapes)[0] == macs == count(eager)[0]
