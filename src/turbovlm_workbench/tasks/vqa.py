"""Visual question answering: accuracy by the official rules, or exact match with one answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from turbovlm_workbench.data import Question, read_questions
from turbovlm_workbench.data.predictions import Record
from turbovlm_workbench.load.answering import AnsweringModel
from turbovlm_workbench.load.by_task import load_answering
from turbovlm_workbench.tasks.registry import register_task
from turbovlm_workbench.tasks.request import Request
from turbovlm_workbench.tasks.scored import ScoredTask, Stages


@register_task
@dataclass(frozen=True)
class VQA(ScoredTask):
    """A model that answers questions about images.

    Metrics get the answer to a question, and its one answer or those of several annotators.

    Args:
        examples: questions with one answer each, or with several each.
    """

    loaded: AnsweringModel
    examples: Sequence[Question] = ()

    kind = "vqa"
    options = frozenset({"answers"})

    @classmethod
    def from_request(cls, request: Request) -> Self:
        """See `ScoredTask.from_request`."""
        found = read_questions(request.data, request.images, request.answers)
        return cls(load_answering(request.model), request.first(found))

    def fingerprint(self) -> list[Any]:
        """Names, questions and answers."""
        return [[e.id, e.question, list(e.answers)] for e in self.examples]

    def stages(self) -> Stages:
        """One answer for each question."""
        records = yield self.stage(
            self._load, self._predict, lambda index: [self.examples[index].image]
        )
        kept = [e for e in self.examples if e.id in records]
        return self.score({e.id: (records[e.id]["answer"], e.answers) for e in kept})

    def _load(self, index: int) -> tuple[Any, str]:
        example = self.examples[index]
        return self.image(example.image), example.question

    def _predict(self, batch: list[tuple[Any, str]]) -> list[Record]:
        images, questions = zip(*batch, strict=True)
        answers = self.loaded.answer(self.loaded.batch(images), list(questions))
        return [{"answer": answer} for answer in answers]
