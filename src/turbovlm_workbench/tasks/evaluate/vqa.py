"""Visual question answering: accuracy by the official rules, or exact match with one answer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from turbovlm_workbench.data import Question
from turbovlm_workbench.load.answering import AnsweringModel
from turbovlm_workbench.metrics.vqa import exact_match, vqa_accuracy
from turbovlm_workbench.tasks.base import Measure
from turbovlm_workbench.tasks.evaluate.stage import Evaluation, Record, Run, Scores, Stage, prepared

ACCURACY = Measure(
    "accuracy",
    "VQA accuracy",
    "agreement with the annotators, three of whom make an answer right, each left out in turn",
)
EXACT = Measure("exact", "exact match", "share of questions whose one answer was given")


class VQA(Evaluation):
    """VQA accuracy where questions have several answers (VQAv2, OKVQA, VizWiz), else exact match.

    Args:
        answerer: a model that answers questions about images.
        examples: questions with one answer each, or with several each.
    """

    kind = "vqa"

    def __init__(self, answerer: AnsweringModel, examples: Sequence[Question]) -> None:
        self.answerer, self.questions = answerer, examples
        self.name, self.model = answerer.name, answerer.model
        self.several = any(len(e.answers) > 1 for e in examples)
        self.measures = (ACCURACY if self.several else EXACT,)
        self.examples = [[e.id, e.question, list(e.answers)] for e in examples]

    def run(self) -> Run:
        """One answer for each question."""
        records = yield Stage(
            "predictions",
            [e.id for e in self.questions],
            lambda index: (
                prepared(self.answerer.prepare, self.questions[index].image),
                self.questions[index].question,
            ),
            self._predict,
        )
        key = self.measures[0].key
        each = {
            e.id: vqa_accuracy(records[e.id]["answer"], e.answers)
            if self.several
            else float(exact_match(records[e.id]["answer"], e.answers[0]))
            for e in self.questions
            if e.id in records
        }
        return Scores({key: sum(each.values()) / len(each)}, {key: each})

    def _predict(self, batch: list[tuple[Tensor, str]]) -> list[Record]:
        images, questions = zip(*batch, strict=True)
        answers = self.answerer.answer(self.batch(images), list(questions))
        return [{"answer": answer} for answer in answers]
