"""The lab's vision-language model on scenes: its visual tokens, and what it says of some."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from criteria import Reduced
from torch import Tensor
from tower import BATCH, Pictures

from turbovlm_lab import reading, telling, vlm
from turbovlm_lab.data import pixels
from turbovlm_lab.lettering import worded_scene
from turbovlm_lab.scenes import seed_of_split


@dataclass(frozen=True)
class Answers:
    """What was said about each of ``I`` scenes.

    ``right`` has one entry a scene, of pairs of topic and whether the answer is right to the
    letter; ``logits`` are those of all tokens of the true answers, ``(M, V)``, and ``row`` the
    scene of each; ``captions`` are greedy.
    """

    right: list[list[tuple[str, bool]]]
    logits: Tensor
    row: Tensor
    captions: list[str]

    def kl(self, whole: Answers) -> Tensor:
        """``(I,)`` of the whole prompt's next tokens to these, in nats a token."""
        p, q = (x.logits.double().log_softmax(-1) for x in (whole, self))
        each = (p.exp() * (p - q)).sum(-1)
        scenes = len(self.right)
        total = torch.zeros(scenes, dtype=torch.float64).index_add_(0, self.row, each)
        return total / torch.bincount(self.row, minlength=scenes)


class Lab(Pictures):
    """The model, some scenes of a split, and what is asked about them."""

    def __init__(self, split: str, start: int, scenes: int, weights: str | None = None) -> None:
        folder = () if weights is None else (weights,)
        model, self.processor = vlm.load_vlm(*folder)
        seeds = [seed_of_split(split, start + i) for i in range(scenes)]
        self.scenes = [worded_scene(seed) for seed in seeds]
        images = torch.from_numpy(np.stack([s.image for s in self.scenes]))
        super().__init__(model, pixels(images))
        self.told = [telling.exam(s.objects, s.word, start + i) for i, s in enumerate(self.scenes)]

    @torch.inference_mode()
    def answers(self, given: Reduced, captions: bool = True) -> Answers:
        """Answers from some visual tokens; captions are written out only if asked for."""
        right, logits, row, written = [], [], [], []
        for first in range(0, len(self.told), BATCH):
            told = self.told[first : first + BATCH]
            image, at = given.features[first : first + BATCH], given.at[first : first + BATCH]
            rows = shortened(reading.text_rows(told), at)
            said = reading.predicted(self.model, image, rows)
            same = reading.right_texts(said, rows)
            right += [
                [(text.topic, good) for text, good in zip(some, goods, strict=True)]
                for some, goods in zip(told, same, strict=True)
            ]
            logits.append(said)
            row.append((rows.after >= 0).nonzero()[:, 0] + first)
            written += self.captions(image, at) if captions else []
        return Answers(right, torch.cat(logits), torch.cat(row), written)

    def captions(self, image: Tensor, at: Tensor) -> list[str]:
        """Greedy captions from visual tokens at their positions."""
        images = len(image)
        prompt = torch.tensor([*telling.vlm_tokens(vlm.DESCRIBE), telling.END])
        embed = self.model.get_input_embeddings()
        start = embed(torch.full((images, 1), telling.START))
        x = torch.cat([start, image, embed(prompt.expand(images, -1))], 1)
        position = torch.arange(len(prompt)) + reading.BEFORE
        position = torch.cat(
            [torch.zeros(images, 1, dtype=torch.int64), at + 1, position.expand(images, -1)], 1
        )
        said = reading.greedy_tokens(self.model, x, position, telling.END, vlm.ANSWER_TOKENS)
        return self.processor.batch_decode(said, skip_special_tokens=True)


def shortened(rows: reading.Rows, at: Tensor) -> reading.Rows:
    """Rows behind the image tokens ``at`` ``(B, K)`` alone; the positions stay."""
    cut = slice(reading.BEFORE - 1 - at.shape[1], None)
    short = reading.Rows(*(part[:, cut].clone() for part in rows))
    short.tokens[:, 0], short.position[:, 0] = telling.START, 0
    short.position[:, 1 : 1 + at.shape[1]] = at + 1
    return short
