"""What every task has in common: a model, its preprocessing, and how two outputs compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from turbovlm_workbench.data.images import Images
from turbovlm_workbench.load.prepare import Prepare

Output = TypeVar("Output")


@dataclass(frozen=True)
class Measure:
    """One number of quality: how it is called, written, read, and made from those of the images."""

    key: str
    title: str
    about: str
    percent: bool = True
    better: Literal["higher", "lower"] = "higher"
    reduce: Literal["mean", "min"] = "mean"

    def text(self, value: float) -> str:
        """``value`` as the tables print it: a percentage, or four decimals."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4f}"


def summarize(
    measures: Sequence[Measure], scores: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """The scores of all images (at least one) as one number per measure, by its key."""
    reduce = {"mean": fmean, "min": min}
    return {m.key: reduce[m.reduce]([score[m.key] for score in scores]) for m in measures}


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
    drift: ClassVar[Measure]
    """How far an output moved, lower is better: the least noisy score, by which a search ranks."""
    tolerance: ClassVar[str]

    @property
    @abstractmethod
    def loss(self) -> Measure:
        """What one image loses by merging, in [-1, 1]: the one number that settings are judged by.

        0 where nothing changed; below 0 only against a known truth.
        """

    @abstractmethod
    def measures(self) -> tuple[Measure, ...]:
        """The numbers of quality beside ``loss``, in the order of the table."""

    @abstractmethod
    def call(self, model: nn.Module, pixels: Tensor) -> Any:
        """The work that is timed: one forward, or one ``generate``."""

    @abstractmethod
    def read(self, raw: Any) -> Output:
        """What ``call`` returned, as ``scores`` takes it, on the CPU."""

    @abstractmethod
    def scores(self, reference: Output, output: Output, start: int) -> list[dict[str, float]]:
        """What every image of a batch scores, by the keys of ``measures``, ``loss`` and ``drift``.

        Args:
            reference: the unmerged model's outputs.
            output: those of the model that is scored.
            start: index of the batch's first image among all images.
        """

    @abstractmethod
    def acceptable(self, quality: Mapping[str, float], unmerged: Mapping[str, float]) -> bool:
        """Whether the loss is one that ``tolerance`` names."""

    @abstractmethod
    def words(self, output: Output) -> list[str]:
        """Each of the B outputs in a few words, for a reader."""

    def select(self, indices: Sequence[int]) -> Task[Output]:
        """The same task over some of its images, in the given order."""
        return self

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


def batches(
    task: Task[Any], images: Images, indices: Sequence[int], batch: int
) -> Iterator[tuple[int, Tensor]]:
    """Some of the images in batches: how many came before, and pixels (B, 3, H, W)."""
    for start in range(0, len(indices), batch):
        chosen = indices[start : start + batch]
        yield start, task.pixels([images.image(index) for index in chosen])


def calling(task: Task[Any]) -> Callable[[Any, Any], object]:
    """The work that is timed and counted, as a function of model and pixels."""

    def call(model: Any, pixels: Any) -> object:
        with torch.inference_mode():
            return task.call(model, pixels)

    return call
