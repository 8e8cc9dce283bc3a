"""What lessons share: scenes behind the frozen encoder, and texts that read images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor, nn

from turbovlm_lab.data import patch_targets
from turbovlm_lab.kinds import Kind
from turbovlm_lab.scenes import MAX_OBJECTS, Object

SEEDS = 2**31 - 1
HINT = 0.3  # weight of what tells the cross-attention where to look


class EncodedScenes(NamedTuple):
    """What the frozen part of the vision encoder makes of N scenes.

    ``states`` is float16 (N, 197, 160); ``shown`` int64 (N, 197) names the object that each token
    shows by its place in the caption, from 1 on (0 for none).
    """

    states: Tensor
    shown: Tensor
    objects: Sequence[Sequence[Object]]


def encoded_scenes(states: Tensor, objects: Sequence[Sequence[Object]]) -> EncodedScenes:
    """Scenes whose states (N, 197, 160) are known."""
    shown = torch.zeros(states.shape[:2], dtype=torch.int64)
    for row, items in zip(shown, objects, strict=True):
        row[1:] = torch.from_numpy(patch_targets(items)[:, 0])
    return EncodedScenes(states, shown, objects)


class Attended(NamedTuple):
    """What B texts attend to: ``images`` (B,) of a batch, and there the tokens ``wanted``, bool
    (B, L, N), or (B, 1, N) for all words alike; a hint for training, with no effect otherwise."""

    images: Tensor
    wanted: Tensor


@contextmanager
def guided_reading(looks: Mapping[Any, Attended]) -> Iterator[list[Tensor]]:
    """Let many texts read few images, of which keys and values are then computed but once.

    The texts of an image stand side by side as one long text, which changes nothing: the words
    of a text attend to an image without regard to each other.

    Args:
        looks: by cross-attention (module).

    Yields:
        How much each of them looked elsewhere in the forwards so far: the mean of -log of the
        share of attention, all heads together, on the tokens wanted.
    """
    missed: list[Tensor] = []

    def shared(attention: Any, attended: Attended) -> Any:
        same = attended.images[:, None] == attended.images
        rank = same.tril(-1).sum(1)  # of each text among those of its image
        most = int(same.sum(1).max())

        def forward(hidden_states: Tensor, *, encoder_hidden_states: Tensor, **_: Any) -> Any:
            texts = attention.query(hidden_states)
            rows = texts.new_zeros(len(encoder_hidden_states), most, *texts.shape[1:])
            rows[attended.images, rank] = texts
            query, key, value = (
                x.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
                for x in (
                    rows.flatten(1, 2),
                    attention.key(encoder_hidden_states),
                    attention.value(encoder_hidden_states),
                )
            )
            shares = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(-1)
            out = (shares.to(value.dtype) @ value).transpose(1, 2).flatten(2)
            seen = shares.mean(1).unflatten(1, rows.shape[1:3])[attended.images, rank]
            told = attended.wanted.any(-1).expand(seen.shape[:2])
            missed.append(-(seen * attended.wanted).sum(-1)[told].clamp(min=1e-5).log().mean())
            return out.unflatten(1, rows.shape[1:3])[attended.images, rank], None

        return forward

    for attention, attended in looks.items():
        attention.forward = shared(attention, attended)
    try:
        yield missed
    finally:
        for attention in looks:
            del attention.forward


def tokens_to_attend(encoded: EncodedScenes, places: np.ndarray, kinds: Sequence[Kind]) -> Tensor:
    """Which tokens of each scene show an object of the kind named with it, bool (B, N)."""
    fits = torch.zeros(len(places), MAX_OBJECTS + 1, dtype=torch.bool)
    for row, place, kind in zip(fits, places, kinds, strict=True):
        for order, item in enumerate(encoded.objects[place], start=1):
            row[order] = kind.fits(item)
    return fits.gather(1, encoded.shown[places])


class Lesson(ABC):
    """A head in training.

    Attributes:
        texts: how many texts a step reads.
        trained: names of the parameters of the vision encoder that are trained.
    """

    texts: int

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.trained: set[str] = set()

    def begin(self, answering: Mapping[str, Tensor]) -> None:
        """Start from the text encoder of the head that answers questions: it can read images."""
        weights = {n: x for n, x in answering.items() if n.startswith("text_encoder.")}
        self.model.load_state_dict(weights, strict=False)

    def see(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) -> what `EncodedScenes` holds of them (B, N, C)."""
        return self.model.vision_model(images).last_hidden_state

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {
            name: p
            for name, p in self.model.named_parameters()
            if not name.startswith("vision_model.") or name in self.trained
        }

    @abstractmethod
    def loss(self, encoded: EncodedScenes, rng: RandomState) -> Tensor:
        """The loss of one step."""

    @abstractmethod
    def scores(self, encoded: EncodedScenes) -> dict[str, float]:
        """Shares (0 to 1) of what is right."""

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L)."""
        made = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        return made["input_ids"], made["attention_mask"]

    def read(
        self, ids: Tensor, mask: Tensor, states: Tensor, attended: Attended
    ) -> tuple[Tensor, Tensor]:
        """What the text encoder makes of texts about images (B, L, C), and how it looked."""
        encoder = self.model.text_encoder
        looks = {layer.crossattention.self: attended for layer in encoder.encoder.layer}
        with guided_reading(looks) as missed:
            out = encoder(ids, attention_mask=mask, encoder_hidden_states=states)
        return out.last_hidden_state, torch.stack(missed).mean()
