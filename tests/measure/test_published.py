"""FLOPs that the paper publishes, recomputed without weights: models on the meta device."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import turbovlm
from turbovlm.measure import flops

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-3


@cache
def timm_vit(name: str, size: int) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, img_size=size, num_classes=0)


@cache
def blip(size: int) -> nn.Module:
    with torch.device("meta"):
        return transformers.BlipVisionModel(transformers.BlipVisionConfig(image_size=size))


@cache
def eva(size: int) -> nn.Module:
    with torch.device("meta"):
        return transformers.Blip2VisionModel(transformers.Blip2VisionConfig(image_size=size))


def gflops(model: nn.Module, size: int, r: int) -> float:
    """The paper's column for one image and ``r`` tokens merged in every block."""
    images = (torch.empty(1, 3, size, size, device="meta"),)
    if r == 0:
        return flops(model, images).gflops
    with turbovlm.applied(model, turbovlm.Merge(r=r)):
        return flops(model, images).gflops


SMALL, BASE, LARGE = (f"vit_{s}_patch16_224" for s in ("small", "base", "large"))
HUGE = "vit_huge_patch14_224"


@pytest.mark.parametrize(
    ("name", "size", "r", "expected"),
    [
        (BASE, 384, 0, 55.539), (BASE, 384, 45, 28.30),  # SWAG B/16
        (BASE, 480, 0, 92.107), (BASE, 480, 40, 65.161), (BASE, 480, 60, 52.553),  # BLIP VQA
        (SMALL, 224, 0, 4.61), (SMALL, 224, 13, 2.71),
        (BASE, 224, 0, 17.58), (BASE, 224, 13, 10.38),
        (LARGE, 224, 0, 61.60), (LARGE, 224, 7, 34.74),
        (LARGE, 512, 0, 362.24), (LARGE, 512, 40, 183.12),  # SWAG L/16
        (HUGE, 518, 0, 1017.29), (HUGE, 518, 40, 514.11),  # SWAG H/14
    ],
)  # fmt: skip
def test_timm(name: str, size: int, r: int, expected: float) -> None:
    assert gflops(timm_vit(name, size), size, r) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(("r", "expected"), [(0, 55.539), (30, 37.033), (40, 31.157), (35, 34.075)])
def test_blip_retrieval(r: int, expected: float) -> None:
    assert gflops(blip(384), 384, r) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("size", "r", "expected"),
    [
        (364, 0, 717.451), (364, 16, 375.993), (364, 15, 396.549),  # BLIP-2 retrieval
        (448, 0, 1125.42), (448, 12, 849.78), (448, 16, 761.05),  # MiniGPT-v2
    ],
)  # fmt: skip
def test_eva(size: int, r: int, expected: float) -> None:
    assert gflops(eva(size), size, r) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("r", [0, 4])
def test_meta_fused_and_eager_agree(r: int) -> None:
    """The same model, patched or not: from shapes, with the fused kernel, and materialised."""

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
