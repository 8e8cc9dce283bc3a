"""Captions and images that find each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor, nn
from torch.nn import functional as F

from turbovlm_lab.grammar import ATTRIBUTES, describe
from turbovlm_lab.kinds import VALUES, another, kind_of
from turbovlm_lab.lessons.base import HINT, Attended, EncodedScenes, Lesson
from turbovlm_lab.scenes import MAX_OBJECTS, Object, draw_integer


class RetrievalLesson(Lesson):
    """Captions to images: by the angle between embeddings (ITC), and read with the image (ITM).

    The captioner's cls token was never asked to stand for the image, so the last block of the
    vision encoder is trained along: `EncodedScenes` holds what goes into it.
    """

    images, matched = 48, 12
    texts = images + 3 * matched
    temperature = 0.07
    listed = 16  # images or captions that ITM orders anew

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        names = dict(model.named_parameters())
        last = f"vision_model.encoder.layers.{len(model.vision_model.encoder.layers) - 1}."
        self.trained = {name for name in names if name.startswith(last)}
        # Names, in training alone, what an embedding says of each object (none: 0).
        self.slots = [len(VALUES[name]) + 1 for name in ATTRIBUTES] * MAX_OBJECTS
        self.reader = nn.Linear(model.vision_proj.out_features, sum(self.slots))

    def see(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) -> what goes into the last block (B, N, C)."""
        vision = self.model.vision_model
        states = vision.embeddings(images)
        for layer in vision.encoder.layers[:-1]:
            states = layer(states)
        return states

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, with what helps in training alone."""
        return {**super().parameters(), **dict(self.reader.named_parameters())}

    def loss(self, encoded: EncodedScenes, rng: RandomState) -> Tensor:
        """The loss of one step."""
        chosen = rng.permutation(len(encoded.objects))[: self.images]
        scenes = [encoded.objects[place] for place in chosen]
        captions = [describe(objects) for objects in scenes]
        states = encoded.states[chosen].float()
        image, text = self._image(states), self._text(captions)
        alike = image @ text.T / self.temperature
        same = torch.arange(len(chosen))
        contrast = (F.cross_entropy(alike, same) + F.cross_entropy(alike.T, same)) / 2
        named = torch.stack([self._named(x, scenes) for x in (image, text)]).mean()
        # Each image with its caption, with the caption of a scene alike, and with a wrong word.
        alike = alike[: self.matched].detach().float().fill_diagonal_(-torch.inf).softmax(1)
        others = torch.multinomial(alike, 1)[:, 0].tolist()
        said = [
            caption
            for place, other in enumerate(others)
            for caption in (captions[place], captions[other], _mistaken(scenes[place], rng))
        ]
        logits, missed = self._match(encoded, chosen[: self.matched], said, states[: self.matched])
        true = torch.tensor([1, 0, 0] * len(others))
        return contrast + named + F.cross_entropy(logits.float(), true) + HINT * missed

    def scores(self, encoded: EncodedScenes) -> dict[str, float]:
        """Recall@1 among the scenes, by embeddings (itc) and ordered anew (itm)."""
        captions = [describe(objects) for objects in encoded.objects]
        places = np.arange(len(captions))
        image = torch.cat([self._image(part.float()) for part in encoded.states.split(64)])
        alike = (image @ self._text(captions).T).float()
        scores = {"itc text": recall(alike), "itc image": recall(alike.T)}
        for name, rows in (("itm text", alike), ("itm image", alike.T)):
            best = rows.topk(self.listed).indices
            better = torch.full_like(rows, -torch.inf)
            for place in places:
                if name == "itm text":
                    said, where = [captions[i] for i in best[place]], places[place : place + 1]
                else:
                    said, where = [captions[place]] * self.listed, best[place].numpy()
                logits, _ = self._match(encoded, where, said, encoded.states[where].float())
                better[place, best[place]] = logits[:, 1].float()
            scores[name] = recall(better)
        return scores

    def _image(self, states: Tensor) -> Tensor:
        """The embeddings (B, D) of images: what the last block makes of the cls token alone."""
        vision = self.model.vision_model
        layer = vision.encoder.layers[-1]
        normed = layer.layer_norm1(states)
        weights, biases = (
            x.chunk(3) for x in (layer.self_attn.qkv.weight, layer.self_attn.qkv.bias)
        )
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (layer.self_attn.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip(
                (normed[:, :1], normed, normed), weights, biases, strict=True
            )
        )
        seen = (query @ key.transpose(2, 3) * layer.self_attn.scale).softmax(-1).to(value.dtype)
        cls = states[:, 0] + layer.self_attn.projection((seen @ value).flatten(1))
        cls = vision.post_layernorm(cls + layer.mlp(layer.layer_norm2(cls)))
        return F.normalize(self.model.vision_proj(cls), dim=-1)

    def _text(self, captions: Sequence[str]) -> Tensor:
        """The embeddings (B, D) of captions."""
        ids, mask = self.tokens(captions)
        cls = self.model.text_encoder(ids, attention_mask=mask).last_hidden_state[:, 0]
        return F.normalize(self.model.text_proj(cls), dim=-1)

    def _named(self, embeddings: Tensor, scenes: Sequence[Sequence[Object]]) -> Tensor:
        """How badly embeddings tell the objects of their scenes: a mean cross-entropy."""
        true = np.zeros((len(scenes), MAX_OBJECTS, len(ATTRIBUTES)), dtype=np.int64)
        for row, objects in zip(true, scenes, strict=True):
            for slot, item in zip(row, objects, strict=False):
                slot[:] = [VALUES[n].index(getattr(item, n)) + 1 for n in ATTRIBUTES]
        told = self.reader(embeddings / self.temperature).float().split(self.slots, dim=1)
        classes = torch.from_numpy(true).flatten(1).T
        losses = [F.cross_entropy(x, y) for x, y in zip(told, classes, strict=True)]
        return torch.stack(losses).mean()

    def _match(
        self, encoded: EncodedScenes, places: np.ndarray, said: Sequence[str], states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, 2) of captions, as many for each scene of ``places``; how they attended."""
        vision = self.model.vision_model
        seen = vision.post_layernorm(vision.encoder.layers[-1](states))
        ids, mask = self.tokens(said)
        index = torch.arange(len(places)).repeat_interleave(len(said) // len(places))
        # The words of a clause attend to the object at its place in the scene's caption.
        clause = (ids == self.tokenizer.convert_tokens_to_ids(",")).cumsum(1) + 1
        clause[:, 0] = -1
        clause[mask == 0] = -1
        attended = Attended(index, clause[:, :, None] == encoded.shown[places[index], None])
        read, missed = self.read(ids, mask, seen, attended)
        return self.model.itm_head(read[:, 0]), missed


def recall(alike: Tensor) -> float:
    """Recall@1 of queries (N) among candidates (N), where the i-th belongs to the i-th."""
    return (alike.argmax(1) == torch.arange(len(alike))).float().mean().item()


def _mistaken(objects: Sequence[Object], rng: RandomState) -> str:
    """The caption of a scene with another size, colour or shape of one object."""
    mentions: list[Any] = list(objects)
    place = draw_integer(rng, 0, len(mentions))
    wrong = another(rng, kind_of(mentions[place], ATTRIBUTES[:3]))
    mentions[place] = wrong._replace(position=mentions[place].position)
    return describe(mentions)
