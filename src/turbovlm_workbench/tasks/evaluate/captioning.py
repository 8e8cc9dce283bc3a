"""Captioning: BLEU and CIDEr of one caption an image against those that people wrote."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from torch import Tensor

from turbovlm.errors import ModelError
from turbovlm_workbench.data import Captioned
from turbovlm_workbench.metrics.captions import java_tokenizer, plain_tokenizer, score_captions
from turbovlm_workbench.tasks.base import Measure, Task
from turbovlm_workbench.tasks.caption import Caption
from turbovlm_workbench.tasks.evaluate.stage import Evaluation, Record, Run, Scores, Stage, prepared

MEASURES = (
    *(
        Measure(f"bleu{n}", f"BLEU-{n}", f"precision of up to {n} words in a row, corpus level")
        for n in (1, 2, 3, 4)
    ),
    Measure("cider", "CIDEr", "agreement of weighted n-grams with the references, 0 to 10", False),
)


class Captioning(Evaluation):
    """BLEU-1 to 4 and CIDEr.

    Args:
        task: a captioner.
        examples: images with one caption or more.

    Raises:
        ModelError: if the model writes no captions.
    """

    kind = "captioning"
    measures = MEASURES

    def __init__(self, task: Task[list[str]], examples: Sequence[Captioned]) -> None:
        if not isinstance(task, Caption):
            raise ModelError(f"{task.name} does {task.kind}: give a captioner, BLIP or BLIP-2")
        self.task, self.captioned = task, examples
        self.name, self.model = task.name, task.model
        self.examples = [[e.id, list(e.captions)] for e in examples]

    def run(self) -> Run:
        """One ``generate`` for each image."""
        records = yield Stage(
            "predictions",
            [e.id for e in self.captioned],
            lambda index: prepared(self.task.prepare, self.captioned[index].image),
            self._predict,
        )
        kept = [e for e in self.captioned if e.id in records]
        java = shutil.which("java") is not None
        found = score_captions(
            [records[e.id]["caption"] for e in kept],
            [e.captions for e in kept],
            tokenizer=java_tokenizer() if java else plain_tokenizer,
        )
        bleu = {f"bleu{n}": value for n, value in enumerate(found.bleu, start=1)}
        each = {e.id: value for e, value in zip(kept, found.ciders, strict=True)}
        notes = {"tokenizer": "COCO's own (Java)" if java else "turbovlm's, for want of Java"}
        return Scores({**bleu, "cider": found.cider}, {"cider": each}, notes)

    def _predict(self, images: list[Tensor]) -> list[Record]:
        captions = self.task.outputs(self.model, self.batch(images))
        return [{"caption": caption} for caption in captions]
