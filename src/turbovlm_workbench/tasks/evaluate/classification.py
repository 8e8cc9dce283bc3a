"""Classification on labelled images: is the label the first guess, or among the first five?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from turbovlm.errors import ModelError
from turbovlm_workbench.data import Labelled
from turbovlm_workbench.data.images import check_labels
from turbovlm_workbench.load.models import classes
from turbovlm_workbench.tasks.base import Measure, Task
from turbovlm_workbench.tasks.classify import Classify
from turbovlm_workbench.tasks.evaluate.stage import Evaluation, Record, Run, Scores, Stage, prepared

GUESSES = 5
MEASURES = (
    Measure("top1", "top-1", "share of images whose most likely class is the label"),
    Measure("top5", "top-5", "share of images whose label is among the five most likely classes"),
)


class Classification(Evaluation):
    """Top-1 and top-5 accuracy.

    Args:
        task: a classifier.
        examples: images with their classes, in the model's numbers.

    Raises:
        ModelError: if the model is no classifier.
        InputError: for a label that the model has no class for.
    """

    kind = "classification"
    measures = MEASURES

    def __init__(self, task: Task[Tensor], examples: Sequence[Labelled]) -> None:
        if not isinstance(task, Classify):
            raise ModelError(
                f"{task.name} does {task.kind}: give a classifier, e.g. timm:vit_base_patch16_224"
            )
        check_labels([e.label for e in examples], classes(task))
        self.task, self.labelled = task, examples
        self.name, self.model = task.name, task.model
        self.examples = [[e.id, e.label] for e in examples]

    def run(self) -> Run:
        """One forward for each image."""
        records = yield Stage(
            "predictions",
            [e.id for e in self.labelled],
            lambda index: prepared(self.task.prepare, self.labelled[index].image),
            self._predict,
        )
        label = {e.id: e.label for e in self.labelled}
        first = {k: float(r["classes"][0] == label[k]) for k, r in records.items()}
        five = {k: float(label[k] in r["classes"]) for k, r in records.items()}
        each = {"top1": first, "top5": five}
        return Scores({key: sum(v.values()) / len(v) for key, v in each.items()}, each)

    def _predict(self, images: list[Tensor]) -> list[Record]:
        chances = self.task.outputs(self.model, self.batch(images)).softmax(-1)
        best = chances.topk(min(GUESSES, chances.shape[-1]), dim=-1)
        return [
            {"classes": top.tolist(), "probabilities": [round(p, 5) for p in chance.tolist()]}
            for top, chance in zip(best.indices, best.values, strict=True)
        ]
