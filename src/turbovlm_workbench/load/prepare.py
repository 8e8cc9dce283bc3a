"""Images to pixels: the model's own preprocessing, and the way back for pictures in a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from turbovlm_workbench.load.own_size import Pictures, Pixels


@dataclass(frozen=True)
class Prepare:
    """Callable: B images in mode RGB to pixels (B, 3, H, W), float32 on the CPU.

    Of a model that takes pictures in their own size or in tiles it gives `Pictures`.

    Args:
        transform: does the work.
        mean: what it subtracts from each colour (0 to 1).
        std: what it divides by.
    """

    transform: Callable[[Sequence[Image.Image]], Pixels]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Sequence[Image.Image]) -> Pixels:
        """Pixels (B, 3, H, W), or `Pictures`."""
        return self.transform(images)

    def one(self, image: Image.Image) -> Any:
        """What `together` takes of one image: pixels (3, H, W), or `Pictures`."""
        found = self.transform([image])
        return found if isinstance(found, Pictures) else found[0]

    def show(self, pixels: Tensor | Image.Image) -> NDArray[np.uint8]:
        """Undo the normalisation of one image (3, H, W): what the model saw, uint8 (H, W, 3). One
        of `Pictures` is shown as it is."""
        if isinstance(pixels, Image.Image):
            return np.asarray(pixels)
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (self.mean, self.std))
        colours = (pixels.float().cpu() * std + mean).clamp(0, 1) * 255
        return colours.round().byte().permute(1, 2, 0).numpy()


def timm_prepare(model: Any) -> Prepare:
    """The evaluation transform of a timm model: resize, centre crop, normalise.

    This is the model's own recipe (for ViT-Ti: bicubic to 248, crop of 224). On photographs that
    are 256 px already, cutting 224 px out without the resize loses about two points of top-1.
    """
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    recipe = resolve_model_data_config(model)
    transform: Any = create_transform(**recipe, is_training=False)
    return _one_by_one(transform, recipe["mean"], recipe["std"])


def torchvision_prepare(name: str, side: int | None, weights: Path | None = None) -> Prepare:
    """The evaluation transform of a torchvision classifier: resize, centre crop, normalise.

    Published weights bring their own, also as a local file that kept its published name. Any
    other file does not tell how it was trained. Assumed is then, where the architecture has a
    fixed image size, torchvision's ImageNet recipe up to 224 px (bilinear to 8/7 of the side)
    and SWAG's above (bicubic to the side itself), else the recipe of the default weights.

    Args:
        name: of the architecture.
        side: of the image in pixels, where the architecture fixes it.
        weights: the local file; None for the default weights.
    """
    from torchvision.models import get_model_weights
    from torchvision.transforms import InterpolationMode

    published: Any = get_model_weights(name)
    own = [w for w in published if weights is not None and w.url.endswith(f"/{weights.name}")]
    recipe = (own or [published.DEFAULT])[0].transforms
    if own or weights is None or side is None:
        transform = recipe()
    elif side <= 224:
        transform = recipe(
            crop_size=side, resize_size=side * 8 // 7, interpolation=InterpolationMode.BILINEAR
        )
    else:
        transform = recipe(
            crop_size=side, resize_size=side, interpolation=InterpolationMode.BICUBIC
        )
    return _one_by_one(transform, transform.mean, transform.std)


def open_clip_prepare(tower: Any) -> Prepare:
    """The inference transform of an open_clip image tower: resize, centre crop, normalise."""
    from open_clip import image_transform

    recipe = {key: value for key, value in tower.preprocess_cfg.items() if key != "mode"}
    transform: Any = image_transform(recipe.pop("size"), is_train=False, **recipe)
    return _one_by_one(transform, recipe["mean"], recipe["std"])


def processor_prepare(processor: Any) -> Prepare:
    """The image processor of a transformers model."""
    mean = processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0)
    std = processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0)
    return Prepare(
        lambda images: processor(images=list(images), return_tensors="pt")["pixel_values"],
        tuple(mean),
        tuple(std),
    )


def own_size_prepare(processor: Any) -> Prepare:
    """Of a processor that leaves pictures their own size, or cuts them into tiles."""
    return Prepare(lambda images: Pictures(processor, images), (0.0,) * 3, (1.0,) * 3)


def _one_by_one(
    transform: Callable[[Image.Image], Tensor], mean: Sequence[float], std: Sequence[float]
) -> Prepare:
    """From a transform of one image to pixels (3, H, W)."""
    return Prepare(
        lambda images: torch.stack([transform(image) for image in images]), tuple(mean), tuple(std)
    )
