"""What an evaluation is: passes over examples, and the scores that their records add up to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from turbovlm_workbench.data.images import read_image
from turbovlm_workbench.load.prepare import Prepare
from turbovlm_workbench.tasks.base import Measure

Record = dict[str, Any]
"""What was predicted for one example, in JSON types; ``{"error": ...}`` for a broken image."""


@dataclass(frozen=True)
class Stage:
    """One pass over examples.

    Args:
        name: of the pass, and of the file that keeps its records.
        ids: one for each example, all different.
        load: index to what ``predict`` takes of it, on the CPU; may run in another process.
            An `InputError` here (an unreadable image) is recorded and not fatal.
        predict: what ``load`` gave for a batch, to one record each.
    """

    name: str
    ids: list[str]
    load: Callable[[int], Any]
    predict: Callable[[list[Any]], list[Record]]


@dataclass(frozen=True)
class Scores:
    """The outcome.

    Attributes:
        metrics: by the key of the measure, over all examples without a broken image.
        each: for the metrics that are means, the value of every example by its id.
        notes: what a reader must know to compare the numbers.
    """

    metrics: Mapping[str, float]
    each: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


Run = Generator[Stage, Mapping[str, Record], Scores]
"""Yields stages, is sent the records of each by id (broken ones left out), returns the scores."""


class Evaluation(ABC):
    """A model and the examples that it is scored on.

    Attributes:
        kind: the task's name on the command line.
        name: of the model.
        measures: the metrics, in the order of the table.
        model: what runs, in evaluation mode.
        examples: as JSON types: a run that resumes must have the same ones.
    """

    kind: ClassVar[str]
    name: str
    measures: tuple[Measure, ...]
    model: nn.Module
    examples: Sequence[Any]

    @abstractmethod
    def run(self) -> Run:
        """The stages, and the scores at the end."""

    @property
    def patched(self) -> nn.Module:
        """The module that is given to `turbovlm.apply`."""
        return self.model

    def batch(self, pixels: Sequence[Tensor]) -> Tensor:
        """Pixels (3, H, W) of B images as (B, 3, H, W) with the model's device and type."""
        weight = next(self.model.parameters())
        return torch.stack(list(pixels)).to(device=weight.device, dtype=weight.dtype)


def prepared(prepare: Prepare, path: Path) -> Tensor:
    """Pixels (3, H, W) of one image file.

    Raises:
        InputError: if it cannot be read.
    """
    image: Image.Image = read_image(path)
    return prepare([image])[0]
