"""Tasks whose only input is an image: how two outputs compare, with or without a known truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import nn

from turbovlm.errors import ConfigError
from turbovlm_workbench.data.images import Images
from turbovlm_workbench.load.loaded import LoadedModel
from turbovlm_workbench.load.own_size import Pixels
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.tasks.base import Task

Output = TypeVar("Output")


@dataclass(frozen=True)
class ImageTask(Task, ABC, Generic[Output]):
    """A task that bench, sweep and tune run on any folder of images."""

    reads: ClassVar[type[LoadedModel]]
    """The models that the task is for."""
    agreement: ClassVar[Measure]
    drift: ClassVar[Measure]
    """How far an output moved, lower is better: the least noisy score, by which a search ranks."""
    tolerance: ClassVar[str]
    writes: ClassVar[bool] = False
    """Whether the work is a loop over the tokens of a text, and no single forward."""

    @property
    @abstractmethod
    def loss(self) -> Measure:
        """What one image loses by merging, in [-1, 1]: the one number that settings are judged by.

        0 where nothing changed; below 0 only against a known truth.
        """

    @property
    @abstractmethod
    def comparisons(self) -> tuple[Measure, ...]:
        """The numbers of quality beside ``loss``, in the order of the table."""

    @abstractmethod
    def call(self, model: nn.Module, pixels: Pixels) -> Any:
        """The work that is timed: one forward, or one ``generate``."""

    @abstractmethod
    def read(self, raw: Any) -> Output:
        """What ``call`` returned, as ``compare`` takes it, on the CPU."""

    @abstractmethod
    def compare(self, reference: Output, output: Output, start: int) -> list[dict[str, float]]:
        """What each image of a batch scores, by the keys of ``comparisons``, ``loss``, ``drift``.

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

    def with_labels(self, labels: Sequence[int] | None) -> Self:
        """The same task, scored against ``labels`` (one per image, in order) where there are any.

        Raises:
            ConfigError: if labels are given and the task has no use for them.
            InputError: for a label that the model has no class for.
        """
        if labels is None:
            return self
        raise ConfigError(
            f"--labels is for classifiers, and {self.name} does {self.kind}: leave it out"
        )

    def select(self, indices: Sequence[int]) -> Self:
        """The same task over some of its images, in the given order."""
        return self

    def encoder(self, model: nn.Module) -> nn.Module:
        """The part that ``--compile`` compiles as one graph."""
        return model

    def first_token(self) -> Self | None:
        """The same task up to the first token of its answer; None where no prompt is answered."""
        return None

    def encode(self, model: nn.Module, pixels: Pixels) -> object:
        """Run the image encoder of ``model`` and nothing else."""
        return self.encoder(model)(pixels)

    def outputs(self, model: nn.Module, pixels: Pixels) -> Output:
        """Outputs of ``model`` for a batch of images."""
        with torch.inference_mode():
            return self.read(self.call(model, pixels))


def batches(
    task: Task, images: Images, indices: Sequence[int], batch: int
) -> Iterator[tuple[int, Pixels]]:
    """Some of the images in batches: how many came before, and pixels."""
    for start in range(0, len(indices), batch):
        chosen = indices[start : start + batch]
        yield start, task.pixels([images.image(index) for index in chosen])


def told_batches(
    task: Task, images: Images, indices: Sequence[int], batch: int,
    progress: Callable[[int, int], object],
) -> Iterator[Pixels]:  # fmt: skip
    """The pixels of `batches`, telling ``progress`` how many images are done and how many there
    are."""
    for start, pixels in batches(task, images, indices, batch):
        progress(start, len(indices))
        yield pixels


def calling(task: ImageTask[Any]) -> Callable[[Any, Any], object]:
    """The work that is timed and counted, as a function of model and pixels."""

    def call(model: Any, pixels: Any) -> object:
        with torch.inference_mode():
            return task.call(model, pixels)

    return call
