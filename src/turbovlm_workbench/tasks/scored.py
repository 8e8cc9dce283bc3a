"""Tasks on labelled examples: passes over them, and the scores that their records add up to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from turbovlm_workbench.data.images import read_image
from turbovlm_workbench.data.predictions import Record
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.metrics.registry import metrics_for
from turbovlm_workbench.tasks.base import Task
from turbovlm_workbench.tasks.request import Request

PREDICTIONS = "predictions"
"""The stage whose records are what the task is about."""


@dataclass(frozen=True)
class Stage:
    """One pass over examples.

    Args:
        name: of the pass, and of the file that keeps its records.
        ids: one for each example, all different.
        load: index to what ``predict`` takes of it, on the CPU; may run in another thread.
            An `InputError` here (an unreadable image) is recorded and not fatal.
        predict: what ``load`` gave for a batch, to one record each.
        files: index to the files that ``load`` reads of it: a record counts only as long as they
            hold what they held.
        basis: a digest of the earlier stages' records that this one builds on; records of another
            basis are predicted anew.
    """

    name: str
    ids: list[str]
    load: Callable[[int], Any]
    predict: Callable[[list[Any]], list[Record]]
    files: Callable[[int], Sequence[Path]]
    basis: str = ""


@dataclass(frozen=True)
class TaskScores:
    """The outcome.

    Attributes:
        metrics: by the key of the measure, over all examples without a broken image.
        each: for the metrics that are means, the value of every example by its id.
        notes: what a reader must know to compare the numbers.
    """

    metrics: Mapping[str, float]
    each: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


Stages = Generator[Stage, Mapping[str, Record], TaskScores]
"""Yields stages, is sent the records of each by id (broken ones left out), returns the scores."""


@dataclass(frozen=True)
class ScoredTask(Task, ABC):
    """A task that ``turbovlm eval`` scores on examples.

    Args:
        examples: each has an ``id`` of its own.
    """

    examples: Sequence[Any] = ()

    options = frozenset[str]()
    """Which of the request's ``answers`` and ``weights`` the task has a use for."""

    @classmethod
    @abstractmethod
    def from_request(cls, request: Request) -> Self:
        """The task with its data and its model.

        Data are read first: they are checked in a second, and a model takes minutes to load.
        """

    @abstractmethod
    def fingerprint(self) -> list[Any]:
        """The examples as JSON types: a run that resumes must have the same ones."""

    @abstractmethod
    def stages(self) -> Stages:
        """The passes over the examples, and the scores at the end."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All metrics that the task can have, in the order of the table."""
        return tuple(measure for metric in metrics_for(self.kind) for measure in metric.measures)

    @property
    def patched(self) -> Any:
        """What is given to `turbovlm.apply`."""
        return self.model

    @property
    def parts(self) -> Mapping[str, Any]:
        """What the answers depend on beside the data, see `run.identity.model_digest`."""
        words = getattr(self.loaded, "tokenizer", None)
        return {"model": self.model, "prepare": self.prepare, "tokenizer": words}

    def stage(
        self,
        load: Callable[[int], Any],
        predict: Callable[[list[Any]], list[Record]],
        files: Callable[[int], Sequence[Path]],
    ) -> Stage:
        """The only pass of a simple task: one record for each example."""
        return Stage(PREDICTIONS, [e.id for e in self.examples], load, predict, files)

    def image(self, path: Path) -> Any:
        """What `LoadedModel.batch` takes of one image file: pixels (3, H, W), or `Pictures`.

        Raises:
            InputError: if it cannot be read.
        """
        return self.prepare.one(read_image(path))

    def score(self, pairs: Mapping[str, tuple[Any, Any]]) -> TaskScores:
        """All metrics of the task.

        Args:
            pairs: prediction and reference of every example whose image could be read, by its id.
        """
        predictions = [prediction for prediction, _ in pairs.values()]
        references = [reference for _, reference in pairs.values()]
        metrics: dict[str, float] = {}
        each: dict[str, dict[str, float]] = {}
        notes: dict[str, str] = {}
        for metric in metrics_for(self.kind):
            found = metric.score(predictions, references)
            for key, values in found.each.items():
                counted = zip(pairs, values, strict=True)
                each[key] = {name: value for name, value in counted if value is not None}
                metrics[key] = sum(each[key].values()) / len(each[key])
            metrics |= found.whole
            notes |= found.notes
        ordered = {m.key: metrics[m.key] for m in self.measures if m.key in metrics}
        return TaskScores(ordered, each, notes)
