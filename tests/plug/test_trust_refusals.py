"""What cannot be patched says why, and nothing is patched in part without a word."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import transformers as hf
from torch import nn
from transformers.models.mlcd.configuration_mlcd import MLCDVisionConfig
from transformers.models.mlcd.modeling_mlcd import MLCDVisionModel

import turbovlm
from tests.hosts.zoo import SIZES, TEXT
from turbovlm import Merge, hosts
from turbovlm.errors import UnsuitableBlock

SWIN: dict[str, Any] = {
    "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 64,
}  # fmt: skip
STAGES: dict[str, Any] = {"out_features": ["stage1", "stage2"]}
BERT = {k: v for k, v in TEXT.items() if k not in ("bos_token_id", "sep_token_id")}


def grounding_dino(backbone: Any) -> nn.Module:
    config = hf.GroundingDinoConfig(
        backbone_config=backbone, text_config=hf.BertConfig(**BERT), d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=4, num_feature_levels=2,
    )  # fmt: skip
    return hf.GroundingDinoModel(config)


def dual(vision: nn.Module) -> nn.Module:
    return hf.VisionTextDualEncoderModel(
        vision_model=vision,  # type: ignore[arg-type]
        text_model=hf.BertModel(hf.BertConfig(**BERT)),
    )


def swin_config() -> Any:
    return hf.SwinConfig(**SWIN, **STAGES)


def resnet_config() -> Any:
    return hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **STAGES)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: dual(hf.SwinModel(hf.SwinConfig(**SWIN))), "SwinModel .*windows.*text encoder"),
        (lambda: grounding_dino(swin_config()), "SwinBackbone .*windows.*its text encoder"),
        (lambda: grounding_dino(resnet_config()), "takes image input, and no row .*text encoder"),
        (lambda: nn.Sequential(grounding_dino(resnet_config())), "takes image input"),
        (lambda: MLCDVisionModel(MLCDVisionConfig(**SIZES)), "one rotary table for the whole"),
        (lambda: hf.ViltModel(hf.ViltConfig(**SIZES)), "words and patches are one sequence"),
        (lambda: hf.BeitModel(hf.BeitConfig(**SIZES)), "bias per pair"),
        (lambda: hf.VitDetModel(hf.VitDetConfig(num_hidden_layers=1)), "windows"),
    ],
)
def test_the_reason_is_said_and_nothing_is_patched(
    build: Callable[[], nn.Module], reason: str
) -> None:
    model = build()
    with pytest.raises(UnsuitableBlock, match=reason):
        turbovlm.apply(model, Merge(r=4))
    assert not any("turbo_site" in m.__dict__ for m in model.modules())


def test_text_alone_is_still_merged() -> None:
    model = nn.Sequential(hf.BertModel(hf.BertConfig(**BERT)))
    turbovlm.apply(model, Merge(r=2))
    assert any("turbo_site" in m.__dict__ for m in model.modules())


def test_every_name_in_the_tables_exists() -> None:
    """A class that a host library renames must not fall out of the tables unseen."""
    named = [n for r in hosts.REFUSALS for n in r.names]
    for row in hosts.rows():
        named += [row.block, *row.towers, *row.readers]
    missing = []
    for name in named:
        module, _, kind = name.rpartition(".")
        try:
            getattr(importlib.import_module(module), kind)
        except (ImportError, AttributeError):
            missing.append(name)
    assert missing == []
