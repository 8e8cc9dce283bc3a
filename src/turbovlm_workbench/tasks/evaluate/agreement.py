"""Agreement with the unmerged model on any images, without labels, in the task's own terms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from turbovlm_workbench.compare.variants import share_weights
from turbovlm_workbench.tasks.base import Task, summarize
from turbovlm_workbench.tasks.evaluate.stage import Evaluation, Record, Run, Scores, Stage, prepared


class Agreement(Evaluation):
    """The task's measures, image by image: same class and KL, same caption, or cosine.

    Args:
        task: a loaded model without labels.
        root: a folder.
        images: files below it.
    """

    kind = "agreement"

    def __init__(self, task: Task[Any], root: Path, images: Sequence[Path]) -> None:
        self.task, self.images = task, images
        self.name, self.model = task.name, task.model
        self.measures = (*task.measures(), task.loss)
        self.examples = [path.relative_to(root).as_posix() for path in images]
        self._twin: nn.Module | None = None

    @property
    def patched(self) -> nn.Module:
        """A twin of the model with the same weights, where those are when it is first asked for."""
        if self._twin is None:
            self._twin = share_weights(self.model)
        return self._twin

    def run(self) -> Run:
        """Both models on every image."""
        records = yield Stage(
            "predictions",
            list(self.examples),
            lambda index: prepared(self.task.prepare, self.images[index]),
            self._predict,
        )
        rows = [record["scores"] for record in records.values()]
        each = {
            measure.key: {key: record["scores"][measure.key] for key, record in records.items()}
            for measure in self.measures
            if measure.reduce == "mean"
        }
        return Scores(summarize(self.measures, rows), each)

    def _predict(self, images: list[Tensor]) -> list[Record]:
        pixels = self.batch(images)
        before = self.task.outputs(self.model, pixels)
        after = self.task.outputs(self.patched, pixels)
        words = zip(self.task.words(before), self.task.words(after), strict=True)
        scores = self.task.scores(before, after, 0)
        return [
            {"unmerged": unmerged, "merged": merged, "scores": score}
            for (unmerged, merged), score in zip(words, scores, strict=True)
        ]
