"""A small Stable Diffusion with random weights, as a user would have it on disk."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import transformers

from tests.hosts.denoisers import unet, wild
from turbovlm.lab.captioner import CAPTION_TOKENS, SPECIAL_TOKENS
from turbovlm.lab.grammar import vocabulary

diffusers: Any = importlib.import_module("diffusers")  # its names are lazy, its types narrow

SIDE = 32  # pixels: latents of 16 x 16, 256 tokens at the first level
STEPS = 3
RED, BLUE = "a large red circle at the top left", "a small blue star at the centre"


def stable_diffusion(folder: Path) -> Path:
    """Text encoder with one token per word, UNet of two levels, autoencoder that halves."""
    tokens = SPECIAL_TOKENS + vocabulary()
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=24,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CAPTION_TOKENS,
        bos_token_id=tokens.index("[CLS]"),
        eos_token_id=tokens.index("[SEP]"),
    )
    tokenizer = transformers.BertTokenizer(
        vocab={word: index for index, word in enumerate(tokens)},
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=CAPTION_TOKENS,
    )
    autoencoder = diffusers.AutoencoderKL(
        sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=wild(autoencoder),
        text_encoder=wild(transformers.CLIPTextModel(text)),
        tokenizer=tokenizer,
        unet=unet().model,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder
