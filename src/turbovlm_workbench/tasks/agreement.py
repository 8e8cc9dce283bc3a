"""Agreement with the unmerged model on any images, without labels, in the task's own terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from turbovlm_workbench.data.images import find_images
from turbovlm_workbench.data.predictions import Record
from turbovlm_workbench.load.models import load_model
from turbovlm_workbench.load.share import share_weights
from turbovlm_workbench.metrics.measure import Measure, summarize
from turbovlm_workbench.tasks.image import ImageTask
from turbovlm_workbench.tasks.registry import image_task, register_task
from turbovlm_workbench.tasks.request import Request
from turbovlm_workbench.tasks.scored import PREDICTIONS, ScoredTask, Stage, Stages, TaskScores


@register_task
@dataclass(frozen=True)
class Agreement(ScoredTask):
    """The comparisons of an `ImageTask`, image by image: same class, same caption, or cosine.

    Args:
        examples: image files below ``root``.
        root: a folder.
    """

    examples: Sequence[Path] = ()
    root: Path = Path()

    kind = "agreement"
    options = frozenset({"weights"})

    @classmethod
    def from_request(cls, request: Request) -> Self:
        """See `ScoredTask.from_request`."""
        images = request.first(list(find_images(request.data)))
        loaded = load_model(request.model, request.weights, beams=request.beams)
        return cls(loaded, images, request.data)

    def __post_init__(self) -> None:
        _ = self.task

    @cached_property
    def task(self) -> ImageTask[Any]:
        """What the model does on images."""
        return image_task(self.loaded)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Those of the task, and its loss."""
        return (*self.task.comparisons, self.task.loss)

    @property
    def patched(self) -> nn.Module:
        """A twin of the model with the same weights, where those are when it is first asked for."""
        return self._twin

    @cached_property
    def _twin(self) -> nn.Module:
        return share_weights(self.model)

    def fingerprint(self) -> list[Any]:
        """Names."""
        return [path.relative_to(self.root).as_posix() for path in self.examples]

    def stages(self) -> Stages:
        """Both models on every image."""
        records = yield Stage(
            PREDICTIONS,
            self.fingerprint(),
            lambda index: self.image(self.examples[index]),
            self._predict,
            lambda index: [self.examples[index]],
        )
        rows = [record["scores"] for record in records.values()]
        each = {
            measure.key: {key: record["scores"][measure.key] for key, record in records.items()}
            for measure in self.measures
            if measure.reduce == "mean"
        }
        return TaskScores(summarize(self.measures, rows), each)

    def _predict(self, images: list[Tensor]) -> list[Record]:
        pixels = self.loaded.batch(images)
        before = self.task.outputs(self.model, pixels)
        after = self.task.outputs(self.patched, pixels)
        words = zip(self.task.words(before), self.task.words(after), strict=True)
        scores = self.task.compare(before, after, 0)
        return [
            {"unmerged": unmerged, "merged": merged, "scores": score}
            for (unmerged, merged), score in zip(words, scores, strict=True)
        ]
