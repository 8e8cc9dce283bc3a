"""The lab's painter: a small Stable Diffusion that draws scenes of up to three objects.

It is a `StableDiffusionPipeline` like any other: an autoencoder that halves 64 pixels to a latent
of 32 x 32, a text encoder with one token per word, and a UNet whose first level therefore holds
1024 tokens, its second 256 and its middle 64.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbovlm.errors import ModelError, require
from turbovlm_lab.captioner import CAPTION_TOKENS, SPECIAL_TOKENS
from turbovlm_lab.grammar import caption_vocabulary
from turbovlm_lab.scenes import layout, seed_of_split

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )
    from transformers import BertTokenizer, CLIPTextModel

WEIGHTS = Path(__file__).parent / "weights" / "painter"
PIXELS = 64
STEPS = 20
GUIDANCE = 3.0
OBJECTS = 3
_TEXT_WIDTH = 128


def reader(width: int, layers: int, heads: int) -> tuple[CLIPTextModel, BertTokenizer]:
    """An untrained text encoder with one token per word of the captions, and its tokenizer."""
    transformers = require("transformers", "hf")
    tokens = SPECIAL_TOKENS + caption_vocabulary()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CAPTION_TOKENS,
        pad_token_id=tokens.index("[PAD]"),
        bos_token_id=tokens.index("[CLS]"),
        eos_token_id=tokens.index("[SEP]"),
    )
    tokenizer = transformers.BertTokenizer(
        vocab={word: index for index, word in enumerate(tokens)},
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=CAPTION_TOKENS,
    )
    return transformers.CLIPTextModel(config), tokenizer


def halving(pixels: int, widths: tuple[int, int], groups: int) -> AutoencoderKL:
    """An untrained autoencoder whose latent has half the side of its images."""
    diffusers: Any = require("diffusers", "diffusion")
    return diffusers.AutoencoderKL(
        sample_size=pixels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=widths,
        norm_num_groups=groups,
        latent_channels=4,
        mid_block_add_attention=False,
    )


def build_painter() -> StableDiffusionPipeline:
    """An untrained painter; its weights follow torch's global generator."""
    diffusers: Any = require("diffusers", "diffusion")
    text, tokenizer = reader(_TEXT_WIDTH, layers=2, heads=4)
    autoencoder = halving(PIXELS, (32, 64), groups=8)
    unet = diffusers.UNet2DConditionModel(
        sample_size=PIXELS // 2,
        layers_per_block=1,
        block_out_channels=(64, 128, 160),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=(2, 4, 4),
        norm_num_groups=16,
    )
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        # Backgrounds are flat and their brightness is drawn at random: noise that leaves a trace
        # of the mean at its last step would make all of them grey.
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def load_painter(folder: Path | str = WEIGHTS) -> StableDiffusionPipeline:
    """The trained painter in float32, quiet.

    Raises:
        ModelError: if ``folder`` holds no weights.
        MissingExtra: if diffusers or transformers is not installed.
    """
    diffusers: Any = require("diffusers", "diffusion")
    require("transformers", "hf")
    if not (Path(folder) / "model_index.json").is_file():
        raise ModelError(
            f"no painter in {folder}: train one with python -m turbovlm_lab.train_painter"
        )
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.text_encoder.float()  # of the parts only this one keeps the file's precision
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_painter(pipe: Any, folder: Path, record: dict[str, Any]) -> None:
    """Write weights (float16 safetensors), configurations, tokenizer and the training's record."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe.to(torch.float16).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for path in folder.rglob("*.json"):  # leave out the folder that the run started from
        held = json.loads(path.read_text(encoding="utf-8"))
        if held.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # or an installed copy is readable by its owner alone


def subjects(name: str, start: int, count: int) -> list[int]:
    """Seeds of scenes that the painter draws, those of at most `OBJECTS` objects, in order.

    Args:
        name: of the split.
        start: index of the first scene that is looked at.
        count: how many.
    """
    found: list[int] = []
    while len(found) < count:
        seed = seed_of_split(name, start)
        start += 1
        if len(layout(seed)) <= OBJECTS:
            found.append(seed)
    return found


def shrink(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """uint8 (224, 224, 3) scenes to what the autoencoder reads: float32 (B, 3, 64, 64) in -1..1."""
    from PIL import Image

    small = [
        np.asarray(Image.fromarray(image).resize((PIXELS, PIXELS), Image.Resampling.BOX))
        for image in images
    ]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1
