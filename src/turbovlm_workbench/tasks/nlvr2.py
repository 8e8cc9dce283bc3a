"""NLVR2: is a statement about two images true?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from turbovlm_workbench.data import Pair, read_pairs
from turbovlm_workbench.data.predictions import Record
from turbovlm_workbench.load.by_task import load_statements
from turbovlm_workbench.load.statements import StatementModel
from turbovlm_workbench.tasks.registry import register_task
from turbovlm_workbench.tasks.request import Request
from turbovlm_workbench.tasks.scored import ScoredTask, Stages


@register_task
@dataclass(frozen=True)
class NLVR2(ScoredTask):
    """A model that says whether statements about two images are true.

    Metrics get what it said of a pair, and the label and the group of the pair.

    Args:
        examples: pairs of images with a statement.
    """

    loaded: StatementModel
    examples: Sequence[Pair] = ()

    kind = "nlvr2"

    @classmethod
    def from_request(cls, request: Request) -> Self:
        """See `ScoredTask.from_request`."""
        examples = request.first(read_pairs(request.data, request.images))
        return cls(load_statements(request.model), examples)

    def fingerprint(self) -> list[Any]:
        """Names, statements and labels."""
        return [[e.id, e.statement, e.label] for e in self.examples]

    def stages(self) -> Stages:
        """One judgement for each pair."""
        records = yield self.stage(self._load, self._predict, self._files)
        kept = [e for e in self.examples if e.id in records]
        return self.score({e.id: (records[e.id]["answer"], (e.label, e.group)) for e in kept})

    def _files(self, index: int) -> list[Path]:
        return [self.examples[index].left, self.examples[index].right]

    def _load(self, index: int) -> tuple[Tensor, Tensor, str]:
        pair = self.examples[index]
        return self.image(pair.left), self.image(pair.right), pair.statement

    def _predict(self, batch: list[tuple[Tensor, Tensor, str]]) -> list[Record]:
        left, right, statements = zip(*batch, strict=True)
        place = self.loaded.batch
        logits = self.loaded.judge(place(left), place(right), list(statements)).float()
        true = logits.softmax(-1)[:, 1].tolist()
        return [{"answer": p > 0.5, "true": round(p, 5)} for p in true]
