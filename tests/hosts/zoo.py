"""Small models with random weights, one per host row: name -> (model, run)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import transformers as hf
from torch import Tensor, nn

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
}
TIMM: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 4,
    "num_heads": 4,
    "num_classes": 10,
}


@dataclass(frozen=True)
class Case:
    """One host: how to build it, and its output as one tensor."""

    name: str
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], Tensor]
    prefix: int = 1
    guide: str = "cls"
    restores: bool = False
    blocks: str = "layers"  # name of the block list


def pixels(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def wild(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that errors show: freshly initialised models are almost linear, and
    BLIP's are constant (its default initializer_range is 1e-10)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2:
                std = 0.5 / p.shape[-1] ** 0.5 if p.dim() == 2 else 0.08
                p.copy_(torch.randn(p.shape, generator=generator) * std)
            elif "norm" not in name.lower() and "ln" not in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


def _last(model: nn.Module, x: Tensor) -> Tensor:
    return model(pixel_values=x).last_hidden_state


def _pooled(model: nn.Module, x: Tensor) -> Tensor:
    return model(pixel_values=x).pooler_output


def _features(model: nn.Module, x: Tensor) -> Tensor:
    return model.forward_features(x)  # type: ignore[operator]


def _vit(**kwargs: Any) -> nn.Module:
    return wild(timm.models.vision_transformer.VisionTransformer(**{**TIMM, **kwargs}))


def _dinov2() -> nn.Module:
    config = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
    return wild(hf.Dinov2Model(hf.Dinov2Config(**config, layerscale_value=0.7)))


CASES = (
    Case("vit", lambda: wild(hf.ViTModel(hf.ViTConfig(**SIZES))), _last),
    Case("deit", lambda: wild(hf.DeiTModel(hf.DeiTConfig(**SIZES))), _last, prefix=2),
    Case("dinov2", _dinov2, _last, restores=True),
    Case(
        "clip", lambda: wild(hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES))), _last, restores=True
    ),
    Case(
        "siglip",
        lambda: wild(hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZES))),
        _last,
        prefix=0,
        guide="mean",
        restores=True,
    ),
    Case("blip", lambda: wild(hf.BlipVisionModel(hf.BlipVisionConfig(**SIZES))), _last),
    Case("blip2", lambda: wild(hf.Blip2VisionModel(hf.Blip2VisionConfig(**SIZES))), _last),
    Case("timm", lambda: _vit(init_values=0.7), _features, blocks="blocks"),
    Case("timm_registers", lambda: _vit(reg_tokens=4), _features, prefix=5, blocks="blocks"),
    Case(
        "timm_average",
        lambda: _vit(class_token=False, global_pool="avg"),
        _features,
        prefix=0,
        guide="mean",
        restores=True,
        blocks="blocks",
    ),
)
