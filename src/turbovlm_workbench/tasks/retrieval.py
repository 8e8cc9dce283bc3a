"""Retrieval: does an image find one of its captions, and a caption its image?

Embeddings of both sides rank everything. A model with a matching head (BLIP, BLIP-2) then ranks the
best ``top`` anew by matching score plus similarity, as those models were published.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from turbovlm.errors import ConfigError
from turbovlm_workbench.data import Captioned, read_captions
from turbovlm_workbench.data.predictions import Record, digest
from turbovlm_workbench.load.by_task import load_matching
from turbovlm_workbench.load.matching import MatchingModel
from turbovlm_workbench.metrics.recall import RANKS
from turbovlm_workbench.tasks.registry import register_task
from turbovlm_workbench.tasks.request import Request
from turbovlm_workbench.tasks.scored import PREDICTIONS, ScoredTask, Stage, Stages

PAIRS = 64  # image-text pairs that the matching head sees at once


@register_task
@dataclass(frozen=True)
class Retrieval(ScoredTask):
    """A model that embeds images and texts.

    Metrics get, for every image and every caption, the images of the best ten candidates, and what
    the query is ("image" or "caption") with its own image.

    Args:
        examples: images with their captions.
        top: candidates that a matching head ranks anew.

    Raises:
        ConfigError: if ``top`` is below 10, which R@10 needs.
    """

    loaded: MatchingModel
    examples: Sequence[Captioned] = ()
    top: int = 128

    kind = "retrieval"
    options = frozenset({"weights"})

    @classmethod
    def from_request(cls, request: Request) -> Self:
        """See `ScoredTask.from_request`."""
        examples = request.first(read_captions(request.data, request.images, request.split))
        return cls(load_matching(request.model, request.weights), examples, request.top)

    def __post_init__(self) -> None:
        if self.top < RANKS[-1]:
            raise ConfigError(
                f"--top must be at least {RANKS[-1]}, which R@10 needs, got {self.top}"
            )

    @cached_property
    def _paths(self) -> dict[str, Path]:
        return {e.id: e.image for e in self.examples}

    @cached_property
    def _features(self) -> dict[str, Tensor]:
        return {}

    def fingerprint(self) -> list[Any]:
        """Names and captions."""
        return [[e.id, list(e.captions)] for e in self.examples]

    def stages(self) -> Stages:
        """Embeddings of the images, of the captions, then the ranking of every query."""
        by_id = {e.id: e for e in self.examples}
        images = yield Stage(
            "images",
            list(by_id),
            lambda index: self.image(self.examples[index].image),
            lambda pixels: _packed(self.loaded.see(self.loaded.batch(pixels))),
            lambda index: [self.examples[index].image],
        )
        # captions of a broken image are no queries: their image cannot be found
        text = {f"{key}#{n}": c for key in images for n, c in enumerate(by_id[key].captions)}
        texts = list(text.values())
        captions = yield Stage(
            "captions",
            list(text),
            texts.__getitem__,
            lambda t: _packed(self.loaded.read(t)),
            _no_files,
        )
        ranking = _Ranking(self, _unpacked(images), _unpacked(captions), list(images), text)
        queries = [("image", key) for key in images] + [("caption", key) for key in text]
        names = [f"{side} {key}" for side, key in queries]
        basis = digest([list(images.items()), list(captions.items())])
        found = yield Stage(
            PREDICTIONS, names, queries.__getitem__, ranking.records, _no_files, basis
        )
        pairs = {}
        for (side, key), name in zip(queries, names, strict=True):
            ranked = found[name]["ranked"]
            own = key.rpartition("#")[0] if side == "caption" else key
            owners = ranked if side == "caption" else [r.rpartition("#")[0] for r in ranked]
            pairs[name] = (owners, (side, own))
        return self.score(pairs)

    def features(self, image: str) -> Tensor:
        """What the matching head attends to of one image, (N, C); kept on the CPU."""
        if image not in self._features:
            pixels = self.loaded.batch([self.image(self._paths[image])])
            self._features[image] = self.loaded.features(pixels)[0].cpu()
        return self._features[image]


class _Ranking:
    """Ranks candidates for queries."""

    def __init__(
        self,
        task: Retrieval,
        images: Tensor,
        captions: Tensor,
        image_ids: Sequence[str],
        text: Mapping[str, str],
    ) -> None:
        self.task, self.images, self.captions = task, images, captions
        self.image_ids, self.caption_ids, self.text = list(image_ids), list(text), text
        self.position = {
            "image": {key: n for n, key in enumerate(self.image_ids)},
            "caption": {key: n for n, key in enumerate(self.caption_ids)},
        }

    def records(self, queries: list[tuple[str, str]]) -> list[Record]:
        """The best ten candidates of each query."""
        return [{"ranked": self.ranked(side, key)} for side, key in queries]

    def ranked(self, side: str, key: str) -> list[str]:
        """Ids of the best ten candidates for the image or caption ``key``, the best first."""
        matcher, at = self.task.loaded, self.position[side][key]
        if side == "image":
            scores = matcher.similarity(self.images[at : at + 1], self.captions)[0]
            names = self.caption_ids
        else:
            scores = matcher.similarity(self.images, self.captions[at : at + 1])[:, 0]
            names = self.image_ids
        # stable: equal scores keep the order of the data on every machine
        order = scores.sort(descending=True, stable=True).indices
        if matcher.reranks:
            order = order[: self.task.top]
            pairs = [(key, names[n]) if side == "image" else (names[n], key) for n in order]
            total = scores[order] + self._match(pairs)
            order = order[total.sort(descending=True, stable=True).indices]
        return [names[n] for n in order[: RANKS[-1]].tolist()]

    def _match(self, pairs: list[tuple[str, str]]) -> Tensor:
        """Scores of the matching head for pairs of an image and a caption."""
        weight = next(self.task.model.parameters())
        found = []
        for start in range(0, len(pairs), PAIRS):
            part = pairs[start : start + PAIRS]
            features = torch.stack([self.task.features(image) for image, _ in part])
            texts = [self.text[caption] for _, caption in part]
            found.append(self.task.loaded.match(features.to(weight.device), texts).float().cpu())
        return torch.cat(found)


def _no_files(index: int) -> tuple[Path, ...]:
    return ()


def _packed(embeddings: Tensor) -> list[Record]:
    """Embeddings (B, ...) as text that loses nothing, a quarter as long as decimals."""
    rows = embeddings.float().cpu().numpy()
    return [
        {"shape": list(row.shape), "float32": base64.b64encode(row.tobytes()).decode()}
        for row in np.ascontiguousarray(rows)
    ]


def _unpacked(records: Mapping[str, Record]) -> Tensor:
    rows = [
        np.frombuffer(base64.b64decode(r["float32"]), np.float32).reshape(r["shape"])
        for r in records.values()
    ]
    return torch.from_numpy(np.stack(rows))
