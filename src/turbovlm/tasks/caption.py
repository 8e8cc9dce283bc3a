"""Captioning with BLIP and BLIP-2: exact match, and right attributes where scenes are described."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from turbovlm.lab.grammar import Describable, attribute_accuracy
from turbovlm.tasks.base import Measure, Meter, Task

EXACT = Measure("exact", "same caption", "share of captions equal to the unmerged model's")
ATTRIBUTES = Measure(
    "attributes",
    "attributes right",
    "share of the mentioned attributes (size, colour, shape, position) that the scene really has",
)

Truth = Sequence[Sequence[Describable]]


class CaptionMeter(Meter[list[str]]):
    """Exact match with the unmerged captions, and attribute accuracy where the truth is known."""

    def __init__(self, truth: Truth | None) -> None:
        self.truth = truth
        self.captions: list[str] = []
        self.same = 0

    def update(self, reference: list[str], output: list[str], start: int) -> None:
        """Add captions of the unmerged model and of this one."""
        self.captions += output
        self.same += sum(a == b for a, b in zip(reference, output, strict=True))

    def result(self) -> dict[str, float]:
        """``attributes`` (where the truth is known) and ``exact``."""
        exact = {"exact": self.same / len(self.captions)}
        if self.truth is None:
            return exact
        accuracy = attribute_accuracy(self.captions, self.truth[: len(self.captions)])
        return {"attributes": accuracy.precision, **exact}


@dataclass
class Caption(Task[list[str]]):
    """A captioner.

    Args:
        decode: token ids (B, T) to B strings.
        options: arguments of ``generate``; sampling is off, so that captions can be compared.
        truth: the objects on every image, in order, where they are known.
    """

    decode: Callable[[Tensor], list[str]]
    options: dict[str, Any] = field(default_factory=dict)
    truth: Truth | None = None

    kind = "captioning"
    agreement = EXACT
    tolerance = "90 % equal captions, or, where the truth is known, one point of attributes"

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

    def meter(self) -> CaptionMeter:
        """A fresh meter over the images of this task."""
        return CaptionMeter(self.truth)

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
        tower: Any = model.get_submodule("vision_model")
        return tower
