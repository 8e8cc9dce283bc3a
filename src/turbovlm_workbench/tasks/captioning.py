"""Captioning: BLEU and CIDEr, and how many captions and words a merged model changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import nn

from turbovlm.errors import ModelError, require
from turbovlm_workbench.data import Captioned, read_captions
from turbovlm_workbench.data.predictions import Record
from turbovlm_workbench.load.loaded import Captioner, vision_tower
from turbovlm_workbench.load.models import load_model
from turbovlm_workbench.load.own_size import Pixels
from turbovlm_workbench.load.prompted import PromptedCaptioner
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.tasks.image import ImageTask
from turbovlm_workbench.tasks.registry import register_task
from turbovlm_workbench.tasks.request import Request
from turbovlm_workbench.tasks.scored import ScoredTask, Stages

EXACT = Measure("exact", "same caption", "share of captions equal to the unmerged model's")
ATTRIBUTES = Measure(
    "attributes",
    "attributes right",
    "share of the mentioned attributes (size, colour, shape, position) that the scene really has, "
    "mean over the captions",
)

LOST = Measure(
    "loss", "attributes lost", "attributes right unmerged minus those of this model", better="lower"
)
REWORDED = Measure(
    "reworded",
    "words changed",
    "1 - F1 of the words of a caption and of the unmerged model's, mean",
    better="lower",
)

Truth = Sequence[Callable[[str], float]]
"""One function an image: the share of what a caption says that is true of it."""


@register_task
@dataclass(frozen=True)
class Captioning(ImageTask[list[str]], ScoredTask):
    """A captioner.

    Metrics get the caption of an image, and those that people wrote.

    Args:
        examples: images with one caption or more.
        truth: for each image of a comparison, in order, where its content is known.

    Raises:
        ModelError: if the model writes no captions.
    """

    examples: Sequence[Captioned] = ()
    truth: Truth | None = None

    kind = "captioning"
    reads = Captioner
    options = frozenset({"weights"})
    writes = True
    agreement = EXACT
    drift = REWORDED
    tolerance = "90 % equal captions, or, where the truth is known, one point of attributes"

    @classmethod
    def from_request(cls, request: Request) -> Self:
        """See `ScoredTask.from_request`."""
        require("pycocoevalcap", "eval")
        examples = request.first(read_captions(request.data, request.images, request.split))
        return cls(load_model(request.model, request.weights, beams=request.beams), examples)

    def __post_init__(self) -> None:
        _ = self.captioner

    @property
    def captioner(self) -> Captioner:
        """The loaded model.

        Raises:
            ModelError: if it writes no captions.
        """
        if isinstance(self.loaded, Captioner):
            return self.loaded
        raise ModelError(
            f"{self.name} writes no captions: give a captioner, BLIP or BLIP-2, or a "
            "model that answers a prompt about an image, LLaVA's kind"
        )

    @property
    def loss(self) -> Measure:
        """Of right attributes where the truth is known, else the share of words that changed.

        Whether two captions are equal to the letter is too strict a promise: "a dog on the grass"
        for "a dog on grass" loses little.
        """
        return replace(REWORDED, key="loss") if self.truth is None else LOST

    @property
    def comparisons(self) -> tuple[Measure, ...]:
        """Right attributes only where the truth is known."""
        return (EXACT,) if self.truth is None else (ATTRIBUTES, EXACT)

    def encode(self, model: nn.Module, pixels: Pixels) -> object:
        """See `ImageTask.encode`."""
        return self.captioner.encode(model, pixels)

    def call(self, model: nn.Module, pixels: Pixels) -> Any:
        """One ``generate``: encoder and decoder, as a user runs them."""
        return self.captioner.write(model, pixels)

    def first_token(self) -> Self | None:
        """See `ImageTask.first_token`."""
        if not isinstance(self.loaded, PromptedCaptioner):
            return None
        options = {**self.loaded.options, "max_new_tokens": 1}
        return replace(self, loaded=replace(self.loaded, options=options))

    def read(self, raw: Any) -> list[str]:
        """B captions."""
        return [text.strip() for text in self.captioner.decode(raw)]

    def compare(
        self, reference: list[str], output: list[str], start: int
    ) -> list[dict[str, float]]:
        """From captions of both models."""
        pairs = list(zip(reference, output, strict=True))
        scores = [{"exact": float(a == b), "reworded": 1 - word_f1(a, b)} for a, b in pairs]
        if self.truth is None:
            return [{**score, "loss": score["reworded"]} for score in scores]
        for score, (before, after), true in zip(scores, pairs, self.truth[start:], strict=False):
            was, now = true(before), true(after)
            score |= {"attributes": now, "loss": was - now}
        return scores

    def select(self, indices: Sequence[int]) -> Self:
        """The truth of those images."""
        truth = self.truth
        return self if truth is None else replace(self, truth=[truth[i] for i in indices])

    def words(self, output: list[str]) -> list[str]:
        """The captions themselves."""
        return output

    def acceptable(self, quality: Mapping[str, float], unmerged: Mapping[str, float]) -> bool:
        """See ``tolerance``."""
        if "attributes" in quality:
            return unmerged["attributes"] - quality["attributes"] <= 0.01 + 1e-9
        return quality["exact"] >= 0.90

    def encoder(self, model: nn.Module) -> nn.Module:
        """The vision tower: the decoder's lengths change with every step."""
        return vision_tower(model)

    def fingerprint(self) -> list[Any]:
        """Names and captions."""
        return [[e.id, list(e.captions)] for e in self.examples]

    def stages(self) -> Stages:
        """One ``generate`` for each image."""
        records = yield self.stage(
            lambda index: self.image(self.examples[index].image),
            self._predict,
            lambda index: [self.examples[index].image],
        )
        kept = [e for e in self.examples if e.id in records]
        return self.score({e.id: (records[e.id]["caption"], e.captions) for e in kept})

    def _predict(self, images: list[Any]) -> list[Record]:
        captions = self.outputs(self.model, self.loaded.batch(images))
        return [{"caption": caption} for caption in captions]


def word_f1(one: str, other: str) -> float:
    """Harmonic mean of precision and recall of two captions' words, counted, in any order."""
    ours, theirs = Counter(one.lower().split()), Counter(other.lower().split())
    whole = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / whole if whole else 1.0
