"""NLVR2: is a statement about two images true?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from turbovlm_workbench.data import Pair
from turbovlm_workbench.load.statements import StatementModel
from turbovlm_workbench.metrics.pairs import consistency
from turbovlm_workbench.tasks.base import Measure
from turbovlm_workbench.tasks.evaluate.stage import Evaluation, Record, Run, Scores, Stage, prepared

MEASURES = (
    Measure("accuracy", "accuracy", "share of statements that were judged right"),
    Measure("consistency", "consistency", "share of sentences judged right for all their pairs"),
)


class NLVR2(Evaluation):
    """Accuracy and consistency.

    Args:
        judge: a model that judges statements about two images.
        examples: pairs of images with a statement.
    """

    kind = "nlvr2"
    measures = MEASURES

    def __init__(self, judge: StatementModel, examples: Sequence[Pair]) -> None:
        self.judge, self.pairs = judge, examples
        self.name, self.model = judge.name, judge.model
        self.examples = [[e.id, e.statement, e.label] for e in examples]

    def run(self) -> Run:
        """One judgement for each pair."""
        records = yield Stage("predictions", [e.id for e in self.pairs], self._load, self._predict)
        kept = [e for e in self.pairs if e.id in records]
        right = [records[e.id]["answer"] == e.label for e in kept]
        each = {e.id: float(ok) for e, ok in zip(kept, right, strict=True)}
        whole = consistency(right, [e.group for e in kept])
        return Scores(
            {"accuracy": sum(right) / len(right), "consistency": whole}, {"accuracy": each}
        )

    def _load(self, index: int) -> tuple[Tensor, Tensor, str]:
        pair, prepare = self.pairs[index], self.judge.prepare
        return prepared(prepare, pair.left), prepared(prepare, pair.right), pair.statement

    def _predict(self, batch: list[tuple[Tensor, Tensor, str]]) -> list[Record]:
        left, right, statements = zip(*batch, strict=True)
        logits = self.judge.judge(self.batch(left), self.batch(right), list(statements)).float()
        true = logits.softmax(-1)[:, 1].tolist()
        return [{"answer": p > 0.5, "true": round(p, 5)} for p in true]
