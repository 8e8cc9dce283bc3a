"""What every task has in common: a model, its preprocessing, and how two outputs compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from turbovlm.tasks.prepare import Prepare

Output = TypeVar("Output")


@dataclass(frozen=True)
class Measure:
    """One number of quality: how it is called, written and read."""

    key: str
    title: str
    about: str
    percent: bool = True
    better: str = "higher"

    def text(self, value: float) -> str:
        """``value`` as the tables print it: a percentage, or four decimals."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4f}"


class Meter(ABC, Generic[Output]):
    """Sums up quality over batches, so that outputs of a large folder are never all held."""

    @abstractmethod
    def update(self, reference: Output, output: Output, start: int) -> None:
        """Add one batch: the unmerged model's outputs, this model's, and the first's index."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Means over all images so far, by the key of the measure."""


@dataclass
class Task(ABC, Generic[Output]):
    """A loaded model and what it is for.

    Args:
        model: in evaluation mode.
        prepare: the model's own preprocessing.
        name: what the user called the model.
    """

    model: nn.Module
    prepare: Prepare
    name: str

    kind: ClassVar[str]
    agreement: ClassVar[Measure]
    tolerance: ClassVar[str]

    @abstractmethod
    def measures(self) -> tuple[Measure, ...]:
        """The numbers of quality that ``meter`` yields, in the order of the table."""

    @abstractmethod
    def call(self, model: nn.Module, pixels: Tensor) -> Any:
        """The work that is timed: one forward, or one ``generate``."""

    @abstractmethod
    def read(self, raw: Any) -> Output:
        """What ``call`` returned, as ``Meter.update`` takes it, on the CPU."""

    @abstractmethod
    def meter(self) -> Meter[Output]:
        """A fresh meter over the images of this task."""

    @abstractmethod
    def acceptable(self, quality: Mapping[str, float], unmerged: Mapping[str, float]) -> bool:
        """Whether the loss is one that ``tolerance`` names."""

    @abstractmethod
    def words(self, output: Output) -> list[str]:
        """Each of the B outputs in a few words, for a reader."""

    def encoder(self, model: nn.Module) -> nn.Module:
        """The part that ``--compile`` compiles as one graph."""
        return model

    def outputs(self, model: nn.Module, pixels: Tensor) -> Output:
        """Outputs of ``model`` for pixels (B, 3, H, W)."""
        with torch.inference_mode():
            return self.read(self.call(model, pixels))

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocessed ``images`` with the model's device and type: (B, 3, H, W)."""
        weight = next(self.model.parameters())
        return self.prepare(images).to(device=weight.device, dtype=weight.dtype)
