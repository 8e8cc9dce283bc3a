"""What every task has: a loaded model, and a name on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from turbovlm_workbench.load.loaded import LoadedModel
from turbovlm_workbench.load.own_size import Pixels
from turbovlm_workbench.load.prepare import Prepare


@dataclass(frozen=True)
class Task:
    """What a model is asked to do.

    A task that can be compared with the unmerged model on any images is an `ImageTask`, one that
    is scored on labelled examples a `ScoredTask`; most are both.

    Args:
        loaded: the model and its preprocessing.
    """

    loaded: LoadedModel

    kind: ClassVar[str]
    """The task's name on the command line and in reports."""

    @property
    def model(self) -> Any:
        """The module that runs, in evaluation mode."""
        return self.loaded.model

    @property
    def prepare(self) -> Prepare:
        """The model's own preprocessing."""
        return self.loaded.prepare

    @property
    def name(self) -> str:
        """What the user called the model."""
        return self.loaded.name

    def pixels(self, images: Sequence[Image.Image]) -> Pixels:
        """Preprocessed ``images`` with the model's device and type."""
        return self.loaded.pixels(images)
