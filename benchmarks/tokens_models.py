"""Vision-language models with random weights in known shapes, and prompts for them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

hf: Any = importlib.import_module("transformers")

IMAGE, START, END = 5, 6, 7
WORDS = 45
"""Tokens of a prompt that are not the image's."""


@dataclass(frozen=True)
class Shape:
    """One model.

    Attributes:
        build: the configuration and the class.
        tokens: visual tokens of the image in `images`.
        images: what the model is given beside the prompt, for a batch.
        axes: channels of its positions.
    """

    build: Callable[[], tuple[Any, Any]]
    tokens: int
    images: Callable[[int], dict[str, Tensor]]
    axes: int = 1

    def model(self, device: str, dtype: torch.dtype) -> nn.Module:
        head, config = self.build()
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model = head(config)
        finally:
            torch.set_default_dtype(before)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model.eval()

    def prompt(self, batch: int, visual: int) -> dict[str, Tensor]:
        """Ids and mask of a prompt with so many visual tokens."""
        words = torch.arange(WORDS - 2) % 80 + 10
        row = torch.cat([words[:5], torch.tensor([START]), torch.full((visual,), IMAGE)])
        row = torch.cat([row, torch.tensor([END]), words[5:]])
        ids = row.expand(batch, -1).contiguous()
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.axes > 1:
            given["mm_token_type_ids"] = (ids == IMAGE).long()
        return given


def _pictures(batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(batch, 3, 336, 336, generator=generator)}


def _patches(batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(batch * 72 * 72, 3 * 2 * 14 * 14, generator=generator),
        "image_grid_thw": torch.tensor([[1, 72, 72]] * batch),
    }


def _llava(vision: dict[str, int], text: dict[str, int]) -> tuple[Any, Any]:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(image_size=336, patch_size=14, **vision),
        text_config=hf.LlamaConfig(bos_token_id=None, eos_token_id=None, **text),
        image_token_id=IMAGE,
    )
    return hf.LlavaForConditionalGeneration, config


def _seven() -> tuple[Any, Any]:
    vision = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    text = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32064,
    }
    return _llava(vision, text)


def _small() -> tuple[Any, Any]:
    vision = {
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    }
    text = {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 1408,
        "vocab_size": 1000,
    }
    return _llava(vision, text)


def _three() -> tuple[Any, Any]:
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
        },
        text_config={
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
            "vocab_size": 151936,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [16, 24, 24],
                "rope_theta": 1e6,
            },
        },
        image_token_id=IMAGE,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return hf.Qwen2_5_VLForConditionalGeneration, config


SHAPES = {
    "small": Shape(_small, 576, _pictures),
    "llava-1.5-7b": Shape(_seven, 576, _pictures),
    "qwen2.5-vl-3b": Shape(_three, 1296, _patches, axes=3),
}
