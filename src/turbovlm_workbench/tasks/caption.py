"""Captioning with BLIP and BLIP-2: exact match, and right attributes where scenes are described."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from turbovlm_workbench.tasks.base import Measure, Task

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


@dataclass
class Caption(Task[list[str]]):
    """A captioner.

    Args:
        decode: token ids (B, T) to B strings.
        options: arguments of ``generate``; sampling is off, so that captions can be compared.
        truth: judges captions of every image, in order, where its content is known.
    """

    decode: Callable[[Tensor], list[str]]
    options: dict[str, Any] = field(default_factory=dict)
    truth: Truth | None = None

    kind = "captioning"
    agreement = EXACT
    drift = REWORDED
    tolerance = "90 % equal captions, or, where the truth is known, one point of attributes"

    @property
    def loss(self) -> Measure:
        """Of right attributes where the truth is known, else the share of words that changed.

        Whether two captions are equal to the letter is too strict a promise: "a dog on the grass"
        for "a dog on grass" loses little.
        """
        return replace(REWORDED, key="loss") if self.truth is None else LOST

    def measures(self) -> tuple[Measure, ...]:
        """Right attributes only where the truth is known."""
        return (EXACT,) if self.truth is None else (ATTRIBUTES, EXACT)

    def call(self, model: nn.Module, pixels: Tensor) -> Any:
        """One ``generate``: encoder and decoder, as a user runs them."""
        generate: Any = model.generate
        return generate(pixel_values=pixels, do_sample=False, **self.options)

    def read(self, raw: Any) -> list[str]:
        """B captions."""
        return [text.strip() for text in self.decode(raw)]

    def scores(self, reference: list[str], output: list[str], start: int) -> list[dict[str, float]]:
        """From captions of both models."""
        pairs = list(zip(reference, output, strict=True))
        scores = [{"exact": float(a == b), "reworded": 1 - word_f1(a, b)} for a, b in pairs]
        if self.truth is None:
            return [{**score, "loss": score["reworded"]} for score in scores]
        for score, (before, after), true in zip(scores, pairs, self.truth[start:], strict=False):
            was, now = true(before), true(after)
            score |= {"attributes": now, "loss": was - now}
        return scores

    def select(self, indices: Sequence[int]) -> Caption:
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
        name = "vision_model" if hasattr(model, "vision_model") else "encoder"
        return model.get_submodule(name)


def word_f1(one: str, other: str) -> float:
    """Harmonic mean of precision and recall of two captions' words, counted, in any order."""
    ours, theirs = Counter(one.lower().split()), Counter(other.lower().split())
    whole = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / whole if whole else 1.0
