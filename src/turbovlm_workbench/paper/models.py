"""The models that the paper counted, built without weights, and what it counted of each.

Everything happens on the meta device. A run gets the patched or unpatched model. Where a run
generates, the model's own decoder runs step by step over beams and its cache: which word each
step chooses needs weights, what a step costs does not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import require

PROMPT = 4  # tokens: [CLS] or </s>, then "a picture of" or "a photo of"
STATEMENT = 36  # tokens of an NLVR2 statement


def timm_vit(name: str, size: int) -> nn.Module:
    """A ViT of timm with its classifier."""
    return require("timm", "timm").create_model(name, img_size=size)


def swag_vit(name: str, size: int) -> nn.Module:
    """A ViT of torchvision with its classifier; SWAG's weights are of these."""
    return require("torchvision.models", "timm").get_model(name, image_size=size)


class _Attended(nn.Module):
    """A vision encoder whose tokens a decoder attends over, however many they are."""

    turbovlm_reads = "tokens"

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Any:
        """What the encoder returns."""
        return self.encoder(pixels)


def blip_vision(size: int) -> nn.Module:
    """BLIP's ViT-B/16."""
    transformers = require("transformers", "hf")
    return _Attended(transformers.BlipVisionModel(transformers.BlipVisionConfig(image_size=size)))


def eva_vision(size: int) -> nn.Module:
    """BLIP-2's EVA-ViT-g/14: 39 blocks, width 1408, MLP 6144, heads of 88."""
    transformers = require("transformers", "hf")
    return _Attended(transformers.Blip2VisionModel(transformers.Blip2VisionConfig(image_size=size)))


def blip_nlvr() -> nn.Module:
    """BLIP base for NLVR2, 384 px."""
    require("transformers", "hf")
    from turbovlm_workbench.paper.nlvr import BlipForNlvr, NlvrConfig

    return BlipForNlvr(NlvrConfig())


def blip_captioner() -> nn.Module:
    """BLIP base for captions, 384 px: transformers' defaults."""
    transformers = require("transformers", "hf")
    return transformers.BlipForConditionalGeneration(transformers.BlipConfig())


def blip2_captioner() -> nn.Module:
    """BLIP-2 with OPT-2.7B, 364 px: the configuration of Salesforce/blip2-opt-2.7b but the size."""
    transformers = require("transformers", "hf")
    text = transformers.OPTConfig(
        hidden_size=2560,
        word_embed_proj_dim=2560,
        ffn_dim=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=50272,
    )
    config = transformers.Blip2Config(vision_config={"image_size": 364}, text_config=text)
    return transformers.Blip2ForConditionalGeneration(config)


def stable_diffusion() -> nn.Module:
    """Stable Diffusion 1.5's UNet."""
    diffusers = require("diffusers", "diffusion")
    return diffusers.UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=768,
        attention_head_dim=8,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
    )


def see(size: int, model: nn.Module) -> object:
    """One image of ``size`` px."""
    return model(_image(size))


def judge(model: nn.Module) -> object:
    """Two images of 384 px and a statement."""
    pixels = torch.zeros(1, 2, 3, 384, 384)
    return model(pixel_values=pixels, input_ids=torch.zeros(1, STATEMENT, dtype=torch.long))


def denoise(model: nn.Module) -> object:
    """One step at 512 px: latents (1, 4, 64, 64) and text states (1, 77, 768)."""
    return model(torch.zeros(1, 4, 64, 64), torch.zeros(()), torch.zeros(1, 77, 768))


def caption_model(beams: int, steps: int, model: Any) -> None:
    """BLIP: the encoder sees the image once, the decoder runs ``steps`` times on all beams.

    Cross-attention projects the image anew in each step, as the paper's code base does: its half
    of the cache starts empty every time.
    """
    from transformers import DynamicCache, EncoderDecoderCache

    pixels = _image(model.config.vision_config.image_size)
    tokens = model.vision_model(pixels).last_hidden_state.expand(beams, -1, -1)
    past = DynamicCache()
    for step in range(steps):
        model.text_decoder(
            input_ids=_ids(beams, 1 if step else PROMPT),
            encoder_hidden_states=tokens,
            use_cache=True,
            **_remembering(model.text_decoder, EncoderDecoderCache(past, DynamicCache())),
        )


def query(model: Any) -> object:
    """BLIP-2: the encoder and the Q-Former see the image once."""
    return model.get_image_features(_image(model.config.vision_config.image_size))


def speak(beams: int, model: Any) -> Iterator[object]:
    """BLIP-2's language model over all beams, one step at a time: queries and prompt, then words.

    It gets as many queries whatever the encoder merged. The head gives the logits of every
    position, as the paper's code base does.
    """
    from transformers import DynamicCache

    past = DynamicCache()
    embed = model.get_input_embeddings()
    fed = model.config.num_query_tokens + PROMPT
    while True:
        yield model.language_model(
            inputs_embeds=embed(_ids(beams, fed)),
            use_cache=True,
            **_remembering(model.language_model, past),
        )
        fed = 1


def _remembering(model: nn.Module, past: Any) -> dict[str, Any]:
    """The cache under the name that this version of transformers gives it."""
    takes = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in takes else "past_key_values": past}


def _image(size: int) -> Tensor:
    return torch.zeros(1, 3, size, size)


def _ids(batch: int, length: int) -> Tensor:
    return torch.zeros(batch, length, dtype=torch.long)
