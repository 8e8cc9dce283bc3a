"""The lab's vision-language model on scenes: its visual tokens, and what it says of some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from criteria import Reduced, Seen, coarse_places, coarse_side
from torch import Tensor
from torch.nn import functional as F

import turbovlm
from turbovlm.plug.language.picture import square
from turbovlm_lab import reading, seeing, telling, vlm
from turbovlm_lab.data import pixels
from turbovlm_lab.lettering import worded_scene
from turbovlm_lab.scenes import seed_of_split

BATCH = 50


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


class Lab:
    """The model, some scenes of a split, and what is asked about them."""

    def __init__(self, split: str, start: int, scenes: int, weights: str | None = None) -> None:
        folder = () if weights is None else (weights,)
        model, self.processor = vlm.load_vlm(*folder)
        self.model: Any = model
        seeds = [seed_of_split(split, start + i) for i in range(scenes)]
        self.scenes = [worded_scene(seed) for seed in seeds]
        self.images = torch.from_numpy(np.stack([s.image for s in self.scenes]))
        self.told = [telling.exam(s.objects, s.word, start + i) for i, s in enumerate(self.scenes)]
        place = square(vlm.IMAGE_TOKENS).place
        assert place is not None
        self.place = place

    @torch.inference_mode()
    def see(self) -> Seen:
        """The visual tokens of all scenes, and what VisionZip reads of the tower."""
        tower = self.model.model.vision_tower
        keys: list[Tensor] = []
        hook = tower.layers[-1].attention.k_proj.register_forward_hook(
            lambda _, __, out: keys.append(out[:, 1:])
        )
        before = tower.config._attn_implementation
        tower.set_attn_implementation("eager")
        features, attended = [], []
        for images in self.images.split(BATCH):
            out = tower(pixels(images), output_hidden_states=True, output_attentions=True)
            features.append(self._projected(out.hidden_states[-1][:, 1:]))
            attended.append(out.attentions[-1].mean((1, 2))[:, 1:])
        tower.set_attn_implementation(before)
        hook.remove()
        return Seen(torch.cat(features), self.place, torch.cat(attended), torch.cat(keys))

    @torch.inference_mode()
    def resized(self, keep: int) -> Reduced:
        """Pictures of fewer patches, at least ``keep``, each token at the nearest position."""
        side = coarse_side(keep)
        features = []
        for images in self.images.split(BATCH):
            size = (side * vlm.PATCH,) * 2
            small = F.interpolate(pixels(images), size, mode="bilinear", antialias=True)
            out = self.model.model.vision_tower(
                small, interpolate_pos_encoding=True, output_hidden_states=True
            )
            features.append(self._projected(out.hidden_states[-1][:, 1:]))
        at = coarse_places(vlm.PATCH_ROWS, side)
        return Reduced(torch.cat(features), at.expand(len(self.images), -1))

    @torch.inference_mode()
    def merged(self, config: turbovlm.Merge) -> tuple[Seen, Tensor]:
        """Visual tokens with merging in the tower, all positions restored, and the survivors'
        positions ``(I, M)``."""
        tower = self.model.model.vision_tower
        features, survivors = [], []
        with turbovlm.applied(tower, config) as run:
            for images in self.images.split(BATCH):
                states = seeing.visual_states(tower, images)
                features.append(self._projected(states))
                kept = run.traces[-1].survivors()[:, 1:] - 1
                survivors.append(kept.sort(1).values)
        joined = torch.cat(features)
        none = torch.zeros(*joined.shape[:2])
        return Seen(joined, self.place, none, joined), torch.cat(survivors)

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
        mask, cache, ids = torch.ones(images, x.shape[1], dtype=torch.int64), None, []
        ended = torch.zeros(images, dtype=torch.bool)
        for _ in range(vlm.ANSWER_TOKENS):
            out = self.model.model.language_model(
                inputs_embeds=x,
                position_ids=position,
                attention_mask=mask,
                cache=cache,
                use_cache=True,
            )
            cache = out.cache
            ids.append(self.model.lm_head(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True))
            ended |= ids[-1][:, 0] == telling.END
            if ended.all():
                break
            x, position = embed(ids[-1]), position[:, -1:] + 1
            mask = F.pad(mask, (0, 1), value=1)
        said = torch.cat(ids, 1)
        over = (said == telling.END).cumsum(1) > 0
        return self.processor.batch_decode(said.masked_fill(over, 0), skip_special_tokens=True)

    def _projected(self, states: Tensor) -> Tensor:
        return self.model.model.multi_modal_projector(states)


def shortened(rows: reading.Rows, at: Tensor) -> reading.Rows:
    """Rows behind the image tokens ``at`` ``(B, K)`` alone; the positions stay."""
    cut = slice(reading.BEFORE - 1 - at.shape[1], None)
    short = reading.Rows(*(part[:, cut].clone() for part in rows))
    short.tokens[:, 0], short.position[:, 0] = telling.START, 0
    short.position[:, 1 : 1 + at.shape[1]] = at + 1
    return short
