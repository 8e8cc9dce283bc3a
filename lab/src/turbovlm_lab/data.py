"""Training samples of the lab: images, caption tokens and what each patch shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from turbovlm_lab.captioner import CAPTION_TOKENS, MEAN, SPECIAL_TOKENS, STD
from turbovlm_lab.grammar import caption_vocabulary
from turbovlm_lab.scenes import (
    COLOURS,
    GRID,
    MAX_OBJECTS,
    SHAPES,
    SIDE,
    SIZES,
    Object,
    scene,
    seed_of_split,
    shape_mask,
)

PATCH = 16
PATCHES = (SIDE // PATCH) ** 2
# Classes per patch: which object of the caption (0 for none), then that object's attributes.
TARGETS = {
    "order": MAX_OBJECTS + 1,
    "size": len(SIZES),
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "cell": GRID * GRID,
}
_COVERED = PATCH * PATCH // 8  # pixels from which a patch counts as showing an object
_TOKENS = {word: index for index, word in enumerate(SPECIAL_TOKENS + caption_vocabulary())}

Sample = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


class Batch(NamedTuple):
    """``images`` uint8 (B, 224, 224, 3), ``tokens`` int64 (B, T) padded with 0, and ``patches``
    int64 (B, 196, 5): the classes of ``TARGETS``, of which only the first counts where it is 0."""

    images: Tensor
    tokens: Tensor
    patches: Tensor


class SceneDataset(Dataset[Sample]):
    """``length`` consecutive scenes of a split, rendered when asked for."""

    def __init__(self, name: str, length: int, *, start: int = 0) -> None:
        self.name, self.length, self.start = name, length, start

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        drawn = scene(seed_of_split(self.name, self.start + index))
        return drawn.image, caption_tokens(drawn.caption), patch_targets(drawn.objects)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a ``Batch``."""
    images, tokens, patches = (
        torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True)
    )
    return Batch(images, tokens, patches)


def caption_tokens(caption: str) -> NDArray[np.int64]:
    """Token ids (47,) of a caption between [CLS] and [SEP], padded with [PAD] (0)."""
    words = ["[CLS]", *caption.replace(",", " ,").split(), "[SEP]"]
    ids = np.zeros(CAPTION_TOKENS, dtype=np.int64)
    ids[: len(words)] = [_TOKENS[word] for word in words]
    return ids


def patch_targets(objects: Sequence[Object]) -> NDArray[np.int64]:
    """Classes (196, 5) of every patch, in the order of ``TARGETS``."""
    side = SIDE // PATCH
    covered = np.full((len(objects) + 1, side, side), _COVERED - 1, dtype=np.int64)
    classes = np.zeros((len(objects) + 1, len(TARGETS)), dtype=np.int64)
    for order, item in enumerate(objects, start=1):
        canvas = np.zeros((SIDE, SIDE), dtype=np.uint8)
        box = canvas[item.top : item.top + item.side, item.left : item.left + item.side]
        box[:] = shape_mask(item.shape, item.side)
        covered[order] = canvas.reshape(side, PATCH, side, PATCH).sum(axis=(1, 3))
        classes[order] = (
            order,
            SIZES.index(item.size),
            tuple(COLOURS).index(item.colour),
            SHAPES.index(item.shape),
            item.row * GRID + item.column,
        )
    return classes[covered.argmax(axis=0).reshape(-1)]


def pixels(images: Tensor) -> Tensor:
    """uint8 (B, 224, 224, 3) to what the processor would give: float32 (B, 3, 224, 224)."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(MEAN).view(3, 1, 1)
    return (scaled - mean) / torch.tensor(STD).view(3, 1, 1)
