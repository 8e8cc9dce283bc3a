"""What a setting loses on some of the images, and whether a promise about the loss is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from torch import Tensor

import turbovlm
from turbovlm.errors import InputError
from turbovlm_workbench.data.images import Images
from turbovlm_workbench.settings import Settings
from turbovlm_workbench.tasks.image import ImageTask, batches
from turbovlm_workbench.tune.bound import upper_bound

FEWEST = 20  # images, of which a third is searched with and the rest validates
SEARCHED = 200  # at most; their pixels are held in memory


@dataclass(frozen=True)
class Loss:
    """The loss of one setting over some images.

    Attributes:
        mean: of the task's loss.
        error: standard error of that mean.
        images: how many.
        bound: what the true mean is below with 95 % confidence, see `upper_bound`.
    """

    mean: float
    error: float
    images: int
    bound: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Loss:
        """From the loss of every image, of at least two."""
        error = stdev(values) / len(values) ** 0.5
        return cls(fmean(values), error, len(values), upper_bound(values))

    def within(self, promise: float) -> bool:
        """Whether the bound is within the promise."""
        return self.bound <= promise + 1e-9  # not a hair more through rounding


@dataclass(frozen=True)
class Trial:
    """One evaluation of a setting.

    Attributes:
        stage: ``"collapse"``, ``"block"``, ``"shape"``, ``"alpha"``, ``"ladder"`` or
            ``"validation"``.
        name: of the settings.
        settings: what is applied together.
        drift: mean of the task's drift.
        loss: on the images of the stage.
        quality: the task's measures on them.
    """

    stage: str
    name: str
    settings: Settings
    drift: float
    loss: Loss
    quality: Mapping[str, float]


class Part:
    """Some images with the unmerged model's outputs, on which settings are scored.

    Args:
        task: a loaded model; it is patched while a setting is scored, and left as it was.
        images: all of them.
        indices: those that belong to this part.
        batch: images per call.
        keep: hold the pixels in memory, for a part that is scored many times.
    """

    def __init__(
        self,
        task: ImageTask[Any],
        images: Images,
        indices: Sequence[int],
        batch: int,
        *,
        keep: bool,
    ) -> None:
        self.task = task.select(indices)
        self.size = len(indices)

        def read() -> Iterable[tuple[int, Tensor]]:
            return batches(task, images, indices, batch)

        held = list(read()) if keep else []
        self._read: Callable[[], Iterable[tuple[int, Tensor]]] = (lambda: held) if keep else read
        self._reference = [task.outputs(task.model, pixels) for _, pixels in self._read()]

    def scores(self, settings: Settings) -> list[dict[str, float]]:
        """Scores of every image under ``settings``, see `ImageTask.compare`.

        Raises:
            TurboError: whatever `turbovlm.apply` refuses.
        """
        model, found = self.task.model, []
        with turbovlm.applied(model, *settings):
            for (start, pixels), reference in zip(self._read(), self._reference, strict=True):
                found += self.task.compare(reference, self.task.outputs(model, pixels), start)
        return found


def loss_of(scores: Sequence[Mapping[str, float]]) -> Loss:
    """The loss among the scores of images."""
    return Loss.of([score["loss"] for score in scores])


def split_images(number: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of ``number`` images to search with and to validate on: a third and the rest.

    Raises:
        InputError: if there are fewer than `FEWEST`.
    """
    if number < FEWEST:
        raise InputError(
            f"tune needs at least {FEWEST} images and got {number}: it searches on a third and "
            "validates on the rest; give a folder with more"
        )
    order = list(range(number))
    random.Random(seed).shuffle(order)
    count = min(number // 3, SEARCHED)
    return order[:count], order[count:]
