"""The lab's vision encoder learns to read: it names what every patch shows, letters among it.

The captioner's encoder was never shown a letter: from its last block 44 % of the letters of unseen
words can be told, from its second block 94 %. So the first two blocks stay as they are, and the
others are trained on what each patch shows: which object and what of it, as the captioner's were,
and which letter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor, nn
from torch.nn import functional as F

from turbovlm_lab.data import TARGETS, patch_targets, pixels
from turbovlm_lab.lettering import LETTERS, free_cells, patch_letters, print_word
from turbovlm_lab.scenes import scene, seed_of_split
from turbovlm_lab.vlm import PATCH_ROWS

FROZEN = 2
"""Leading blocks that keep the captioner's weights, with the embeddings."""

_STREAM = 8  # of the words; those of `worded_scene` are others
SHOWN = {**TARGETS, "letter": len(LETTERS) + 1}


class Patches(NamedTuple):
    """``images`` uint8 (B, 224, 224, 3) and ``shown`` int64 (B, 196, 6): classes of `SHOWN`."""

    images: Tensor
    shown: Tensor


def crowded_patches(name: str, start: int, number: int) -> Patches:
    """Consecutive scenes of a split, with a word in every free cell: letters are rare elsewhere."""
    images, shown = [], []
    for seed in (seed_of_split(name, start + index) for index in range(number)):
        plain, rng = scene(seed), RandomState([seed, _STREAM])
        image = plain.image.copy()
        words = [print_word(image, *cell, rng) for cell in free_cells(plain)]
        letters = patch_letters(words, PATCH_ROWS)
        images.append(image)
        shown.append(np.concatenate([patch_targets(plain.objects), letters[:, None]], axis=1))
    return Patches(*(torch.from_numpy(np.stack(part)) for part in (images, shown)))


class PatchNamer(nn.Module):
    """Names what each patch shows, from the encoder's last state; used in training alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.Linear(width, sum(SHOWN.values()))

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        """States (B, 197, C) to logits (B, 196, classes) by what is asked."""
        parts = self.classes(states[:, 1:]).float().split(tuple(SHOWN.values()), dim=-1)
        return dict(zip(SHOWN, parts, strict=True))


def patch_loss(logits: dict[str, Tensor], shown: Tensor) -> Tensor:
    """Patches of objects and letters weigh as much together as those that show neither."""
    loss = logits["order"].new_zeros(())
    for index, (name, given) in enumerate(logits.items()):
        wanted = shown[..., index]
        if name in ("order", "letter"):
            each = F.cross_entropy(given.flatten(0, 1), wanted.flatten(), reduction="none")
            some = wanted.flatten() > 0
            loss = loss + each[~some].mean()
        else:
            some = shown[..., 0].flatten() > 0
            each = F.cross_entropy(given.flatten(0, 1), wanted.flatten(), reduction="none")
        loss = loss + each[some].sum() / some.sum().clamp(min=1)
    return loss


def patch_scores(logits: dict[str, Tensor], shown: Tensor) -> dict[str, float]:
    """Shares right: of patches with an object (the attributes), of letters, of all (the order)."""
    right = {}
    for index, (name, given) in enumerate(logits.items()):
        same = given.argmax(-1) == shown[..., index]
        if name == "letter":
            same = same[shown[..., index] > 0]
        elif name != "order":
            same = same[shown[..., 0] > 0]
        right[name] = same.float().mean().item()
    return right


def trained_parameters(tower: Any) -> list[nn.Parameter]:
    """Those of the blocks after the frozen ones."""
    for parameter in tower.parameters():
        parameter.requires_grad_(False)
    own = [p for block in tower.layers[FROZEN:] for p in block.parameters()]
    own += list(tower.layernorm.parameters())
    for parameter in own:
        parameter.requires_grad_(True)
    return own


def last_states(tower: Callable[..., Any], images: Tensor) -> Tensor:
    """Images uint8 (B, 224, 224, 3) to the encoder's last state (B, 197, C)."""
    return tower(pixels(images)).last_hidden_state


def visual_states(tower: Callable[..., Any], images: Tensor) -> Tensor:
    """The same images to what LLaVA reads: the last block's output without cls, (B, 196, C)."""
    return tower(pixels(images), output_hidden_states=True).hidden_states[-1][:, 1:]
