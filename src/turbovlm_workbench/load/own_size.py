"""Pictures that a model takes in their own size or in tiles: its processor makes the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

Pixels = Any
"""Pixels ``(B, 3, H, W)``, or the `Pictures` of a model that takes them in their own size."""


class Pictures(Sequence[Image.Image]):
    """B pictures, and what the processor makes of them with a prompt each, made once.

    Args:
        processor: the model's own, whole.
        images: the pictures.
        device: where the inputs are wanted.
        dtype: number format of those inputs that are no whole numbers.
    """

    def __init__(
        self,
        processor: Any,
        images: Sequence[Image.Image],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.processor, self.images = processor, tuple(images)
        self.device, self.dtype = torch.device(device), dtype
        self._made: dict[tuple[str, ...], dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Pictures:
        """One of them, or some of them."""
        if isinstance(index, slice):
            return Pictures(self.processor, self.images[index], self.device, self.dtype)
        return self.images[index]

    def to(self, device: torch.device, dtype: torch.dtype) -> Pictures:
        """The same for a model elsewhere, or in another number format."""
        return Pictures(self.processor, self.images, device, dtype)

    def inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """All that the processor makes of each picture with its text, padded on the left.

        Args:
            texts: B prompts, each with one placeholder of an image.
        """
        key = tuple(texts)
        if key not in self._made:
            found = self.processor(
                images=[[image] for image in self.images],
                text=list(texts),
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
            self._made[key] = {name: self._placed(value) for name, value in found.items()}
        return self._made[key]

    def seen(self) -> dict[str, Tensor]:
        """What the image processor alone makes of the pictures."""
        found = self.processor.image_processor(images=list(self.images), return_tensors="pt")
        return {k: self._placed(v) for k, v in found.items() if isinstance(v, Tensor)}

    def _placed(self, value: Tensor) -> Tensor:
        dtype = self.dtype if value.is_floating_point() else value.dtype
        return value.to(device=self.device, dtype=dtype)


def together(pixels: Sequence[Any]) -> Pixels:
    """What `Prepare` gave for images one by one, as one batch.

    Args:
        pixels: of B images, ``(3, H, W)`` each, or `Pictures` of one each.
    """
    first = pixels[0]
    if isinstance(first, Pictures):
        return Pictures(first.processor, [image for one in pixels for image in one.images])
    return torch.stack(list(pixels))
