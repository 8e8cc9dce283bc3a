"""The metrics of every task, open to other packages: `register_metric`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from turbovlm.errors import ConfigError
from turbovlm_workbench.extensions import load_extensions
from turbovlm_workbench.metrics.measure import Measure


@dataclass(frozen=True)
class MetricValues:
    """What a metric makes of N predictions; all by the key of the measure.

    Attributes:
        each: a value for every prediction in order, None where it does not count. The metric is
            their mean, unless ``whole`` has it.
        whole: metrics of the whole set.
        notes: what a reader must know to compare the numbers.
    """

    each: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    whole: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


MetricFunction = Callable[[Sequence[Any], Sequence[Any]], MetricValues]
AnyMetric = TypeVar("AnyMetric", bound=MetricFunction)


@dataclass(frozen=True)
class Metric:
    """A registered metric: its measures in the order of the table, and the function."""

    measures: tuple[Measure, ...]
    score: MetricFunction


_METRICS: dict[str, list[Metric]] = {}


def register_metric(task: str, *measures: Measure) -> Callable[[AnyMetric], AnyMetric]:
    """Add a metric to a task: a decorator of a function of predictions and references.

    The function takes N predictions and the N references in the same order, as the task's class
    describes them, and returns `MetricValues` with the keys of ``measures``; a measure that does
    not apply to these references may be left out.

    Raises:
        ConfigError: if the task has a measure of such a key already.
    """

    def add(score: AnyMetric) -> AnyMetric:
        known = {m.key for metric in _METRICS.get(task, []) for m in metric.measures}
        if twice := known & {m.key for m in measures}:
            raise ConfigError(f"{task} has a metric {min(twice)} already: take another key")
        _METRICS.setdefault(task, []).append(Metric(measures, score))
        return score

    return add


def metrics_for(task: str) -> tuple[Metric, ...]:
    """The metrics of a task, those of other packages last."""
    load_extensions()
    return tuple(_METRICS.get(task, ()))
