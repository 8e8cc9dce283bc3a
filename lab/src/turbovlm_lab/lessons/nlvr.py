"""Statements about pairs of scenes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor, nn
from torch.nn import functional as F

from turbovlm_lab.lessons.base import (
    HINT,
    SEEDS,
    Attended,
    EncodedScenes,
    Lesson,
    guided_reading,
    tokens_to_attend,
)
from turbovlm_lab.pairs import group
from turbovlm_lab.scenes import MAX_OBJECTS


class Judged(NamedTuple):
    """B statements: what the text encoder made of them (B, C), logits (B, 2), labels (B,), how
    often what they name is on the left and right (B, 2), and how much was looked elsewhere."""

    read: Tensor
    logits: Tensor
    labels: Tensor
    counts: Tensor
    missed: Tensor


class NlvrLesson(Lesson):
    """Statements about pairs."""

    images, groups = 32, 24
    texts = groups * 4

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        # Counts, in training alone, what a statement names in each of the images.
        self.counter = nn.Linear(model.config.text_config.hidden_size, 2 * (MAX_OBJECTS + 1))

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, with what helps in training alone."""
        return {**super().parameters(), **dict(self.counter.named_parameters())}

    def begin(self, answering: Mapping[str, Tensor]) -> None:
        """Both twins start as the cross-attention of that head, and their mean joins them."""
        twins = {}
        for name, weight in answering.items():
            for part in ("self", "output.dense"):
                if f".crossattention.{part}." in name:
                    for side in "01":
                        twins[name.replace(f"{part}.", f"{part}{side}.")] = weight
        super().begin({**answering, **twins})
        half = torch.eye(self.model.config.text_config.hidden_size) / 2
        joined: Any = self.model.text_encoder.encoder.layer[-1].crossattention.output.merge_layer
        joined.load_state_dict(
            {"weight": torch.cat((half, half), 1), "bias": torch.zeros(len(half))}
        )

    def loss(self, encoded: EncodedScenes, rng: RandomState) -> Tensor:
        """The loss of one step."""
        judged = self._judge(encoded, rng, self.images, self.groups)
        counts = self.counter(judged.read).float().unflatten(1, (2, -1)).transpose(1, 2)
        counting = F.cross_entropy(counts, judged.counts)
        right = F.cross_entropy(judged.logits.float(), judged.labels)
        return right + counting + HINT * judged.missed

    def scores(self, encoded: EncodedScenes) -> dict[str, float]:
        """Share of statements judged right, and of those right for all four of their pairs."""
        rng = RandomState(0)
        right = []
        for _ in range(16):
            judged = self._judge(encoded, rng, 64, self.groups)
            right.append((judged.logits.argmax(1) == judged.labels).view(self.groups, -1))
        flat = torch.cat(right).float()
        return {"right": flat.mean().item(), "consistent": flat.min(1).values.mean().item()}

    def _judge(self, encoded: EncodedScenes, rng: RandomState, images: int, groups: int) -> Judged:
        """New statements about some scenes, each with four pairs of them."""
        chosen = rng.permutation(len(encoded.objects))[:images]
        pool = [encoded.objects[place] for place in chosen]
        drawn = [group(pool, rng.randint(SEEDS)) for _ in range(groups)]
        pairs = [pair for one in drawn for pair in one.pairs]
        ids, mask = self.tokens([one.statement for one in drawn for _ in one.pairs])
        about = [one.about for one in drawn for _ in one.pairs]
        sides = [np.array([pair[side] for pair in pairs]) for side in (0, 1)]
        looks = [
            Attended(
                torch.from_numpy(side), tokens_to_attend(encoded, chosen[side], about)[:, None]
            )
            for side in sides
        ]
        encoder = self.model.text_encoder
        twins = [layer.crossattention for layer in encoder.encoder.layer]
        where = {twin.self0: looks[0] for twin in twins} | {twin.self1: looks[1] for twin in twins}
        with guided_reading(where) as missed:
            states = encoded.states[chosen].float()[:, None].expand(-1, 2, -1, -1)
            out = encoder(ids, attention_mask=mask, encoder_hidden_states=states)
        labels = torch.tensor([int(pair.label) for pair in pairs])
        counts = [
            [one.count(pool[place]) for place in pair[:2]]
            for one, pair in zip(about, pairs, strict=True)
        ]
        read = out.last_hidden_state[:, 0]
        logits = self.model.cls_head(read)
        return Judged(read, logits, labels, torch.tensor(counts), torch.stack(missed).mean())
