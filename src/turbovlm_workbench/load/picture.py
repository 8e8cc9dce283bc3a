"""One square picture of a given size, as each vision-language model of transformers takes it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbovlm.plug.language.row import LanguageRow

NATIVE = 1008
"""Side in pixels, where a model takes pictures as they are and its configuration says no size."""
MOST_TILES = 3  # in height and in width: InternVL takes up to 12, which a square fills with 9


@dataclass(frozen=True)
class PictureInput:
    """What ``get_image_features`` is given.

    Attributes:
        given: its keyword arguments, with values, on the CPU.
        words: what it is, for a reader.
    """

    given: Mapping[str, Tensor]
    words: str


def is_native(row: LanguageRow, config: Any) -> bool:
    """Whether the model takes pictures of any size; the others are resized to one."""
    pixtral = getattr(config.vision_config, "model_type", "") == "pixtral"
    return row.layout in ("grid", "packed", "tiles", "runs") or pixtral


def picture(row: LanguageRow, config: Any, size: int | None) -> PictureInput:
    """A square picture for the model with this configuration.

    Args:
        row: the model's.
        config: of the whole model.
        size: side in pixels; None is the model's own, or `NATIVE`. A model that is not
            `is_native` sees its own size whatever is given.
    """
    vision = config.vision_config
    if not is_native(row, config):
        side = _side(vision)
        return _square(side, 1, (1, 1) if row.layout == "latents" else (1,), f"{side} px")
    if row.layout == "grid":
        return _patches(vision, size or NATIVE)
    if row.layout == "sizes":
        return _sized(config, size or _side(vision))
    side, size = _side(vision), size or NATIVE
    if row.layout == "packed":
        count = importlib.import_module(
            "transformers.models.llava_next.modeling_llava_next"
        ).image_size_to_num_patches
        tiles = count([size, size], list(map(list, config.image_grid_pinpoints)), side)
        found = _square(side, tiles, (1, tiles), _tiled(size, tiles - 1))
        return PictureInput(
            {**found.given, "image_sizes": torch.tensor([[size, size]])}, found.words
        )
    if row.layout == "tiles":  # as many as cover less than twice the picture
        across = max(n for n in range(1, MOST_TILES + 1) if n == 1 or size**2 > (n * side) ** 2 / 2)
    else:
        across = math.ceil(size / side)
    tiles = across**2
    every = tiles + (tiles > 1)
    lead = (1, every) if row.layout == "runs" else (every,)
    return _square(side, every, lead, _tiled(size, tiles))


def _square(side: int, count: int, lead: tuple[int, ...], words: str) -> PictureInput:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 3, side, side, generator=generator)
    return PictureInput({"pixel_values": pixels.reshape(*lead, 3, side, side)}, words)


def _patches(vision: Any, size: int) -> PictureInput:
    """Qwen's kind: patches in rows, as many as fill whole squares of the merger."""
    patch, merge = vision.patch_size, vision.spatial_merge_size
    side = max(1, round(size / (patch * merge))) * merge
    width = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * patch**2
    given = {
        "pixel_values": torch.zeros(side * side, width),
        "image_grid_thw": torch.tensor([[1, side, side]]),
    }
    return PictureInput(given, f"{side * patch} px")


def _sized(config: Any, size: int) -> PictureInput:
    """Pixtral's kind: the picture itself and its size."""
    step = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    side = max(1, round(size / step)) * step
    given = _square(side, 1, (1,), f"{side} px")
    return PictureInput({**given.given, "image_sizes": torch.tensor([[side, side]])}, given.words)


def _side(vision: Any) -> int:
    size = getattr(vision, "image_size", None) or NATIVE
    return int(size if isinstance(size, int) else size[0])


def _tiled(size: int, tiles: int) -> str:
    return f"{size} px in {tiles} tiles and a thumbnail" if tiles > 1 else f"{size} px as one tile"
