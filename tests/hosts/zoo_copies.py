"""Small models of the rows whose towers are CLIP's, SigLIP's or ViT's under other names."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.instructblipvideo.configuration_instructblipvideo import (
    InstructBlipVideoVisionConfig,
)
from transformers.models.instructblipvideo.modeling_instructblipvideo import (
    InstructBlipVideoVisionModel,
)
from transformers.models.janus.configuration_janus import JanusVisionConfig
from transformers.models.janus.modeling_janus import JanusVisionModel
from transformers.models.kosmos2.configuration_kosmos2 import Kosmos2VisionConfig
from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2VisionModel
from transformers.models.ovis2.configuration_ovis2 import Ovis2VisionConfig
from transformers.models.ovis2.modeling_ovis2 import Ovis2VisionModel

from tests.hosts.zoo import (
    DINO,
    NO_CLS,
    SIZES,
    Case,
    dinov3_pairs,
    dinov3_tables,
    scaled,
    spectra,
    wild,
)

NOISE = torch.rand(2, 64, generator=torch.Generator().manual_seed(9))


def _last(model: Any, x: Tensor) -> Tensor:
    return model(x).last_hidden_state


def _shuffled(model: Any, x: Tensor) -> Tensor:
    """A quarter of the patches is masked, the others come in a random order."""
    return model(x, noise=NOISE).last_hidden_state


def _frames(model: Any, x: Tensor) -> Tensor:
    """Four frames of 64 pixels: two tubelets of sixteen patches."""
    return model(torch.stack([x, x.flip(-1), x.flip(-2), -x], 1)).last_hidden_state


def _map(model: Any, x: Tensor) -> Tensor:
    """The last feature map, ``(B, C, h, w)`` as ``(B, h w, C)``."""
    return model(x).feature_maps[-1].flatten(2).transpose(1, 2)


def _ovis2() -> nn.Module:
    config = Ovis2VisionConfig(**SIZES, vocab_size=40)
    return wild(Ovis2VisionModel(config))


VIDEO: dict[str, Any] = SIZES | {"patch_size": 16, "num_frames": 4, "tubelet_size": 2}
MAPS: dict[str, Any] = {"out_features": ["stage2", "stage4"]}
BACKBONES = (
    Case(
        "dinov2_backbone",
        lambda: scaled(wild(hf.Dinov2Backbone(hf.Dinov2Config(**DINO, **MAPS))), "lambda"),
        _map,
    ),
    Case(
        "dinov2_with_registers_backbone",
        lambda: scaled(
            wild(
                hf.Dinov2WithRegistersBackbone(
                    hf.Dinov2WithRegistersConfig(**DINO, **MAPS, num_register_tokens=3)
                )
            ),
            "lambda",
        ),
        _map,
        prefix=4,
    ),
    Case(
        "dinov3_backbone",
        lambda: scaled(
            wild(
                hf.DINOv3ViTBackbone(
                    hf.DINOv3ViTConfig(
                        **SIZES, **MAPS, num_register_tokens=4, pos_embed_rescale=None
                    )
                )
            ),
            "lambda",
        ),
        _map,
        prefix=5,
        rotary=dinov3_tables,
        duplicates=dinov3_pairs,
    ),
)
COPIES = (
    Case("ijepa", lambda: wild(hf.IJepaModel(hf.IJepaConfig(**SIZES))), _last, **NO_CLS),
    Case(
        "vit_mae",
        lambda: wild(hf.ViTMAEModel(hf.ViTMAEConfig(**SIZES, mask_ratio=0.25))),
        _shuffled,
    ),
    Case(
        "videomae",
        lambda: wild(hf.VideoMAEModel(hf.VideoMAEConfig(**VIDEO))),
        _frames,
        **NO_CLS,
    ),
    Case("dpt", lambda: wild(hf.DPTModel(hf.DPTConfig(**SIZES))), _last),
    Case(
        "instructblipvideo",
        lambda: wild(InstructBlipVideoVisionModel(InstructBlipVideoVisionConfig(**SIZES))),
        _last,
    ),
    Case("kosmos2", lambda: wild(Kosmos2VisionModel(Kosmos2VisionConfig(**SIZES))), _last),
    Case("janus", lambda: wild(JanusVisionModel(JanusVisionConfig(**SIZES))), _last, **NO_CLS),
    Case("ovis2", _ovis2, _last, **NO_CLS),
    Case(
        "ast",
        lambda: wild(
            hf.ASTModel(
                hf.ASTConfig(
                    **{k: v for k, v in SIZES.items() if k != "image_size"},
                    frequency_stride=8,
                    time_stride=8,
                    num_mel_bins=16,
                    max_length=120,
                )
            )
        ),
        lambda model, x: model(x.transpose(1, 2)).last_hidden_state,
        prefix=2,
        inputs=spectra,
    ),
    *BACKBONES,
)
