"""A small Stable Diffusion with random weights, as a user would have it on disk."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tests.hosts.denoisers import unet, wild
from turbovlm_lab import painter

diffusers: Any = importlib.import_module("diffusers")  # its names are lazy, its types narrow

SIDE = 32  # pixels: latents of 16 x 16, 256 tokens at the first level
STEPS = 3
RED, BLUE = "a large red circle at the top left", "a small blue star at the centre"


def stable_diffusion(folder: Path) -> Path:
    """Text encoder with one token per word, UNet of two levels, autoencoder that halves."""
    text, tokenizer = painter.reader(24, layers=1, heads=2)
    pipe = diffusers.StableDiffusionPipeline(
        vae=wild(painter.halving(SIDE, (8, 8), groups=4)),
        text_encoder=wild(text),
        tokenizer=tokenizer,
        unet=unet().model,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder
