"""What a finished evaluation says, alone and against another run on the same examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from turbovlm.errors import InputError
from turbovlm.notebook import html_table
from turbovlm_workbench.metrics.intervals import interval
from turbovlm_workbench.settings import Settings, to_plain
from turbovlm_workbench.tasks.scored import ScoredTask, TaskScores

SCORES = "scores.jsonl"
"""The file of a run's own folder that holds every example's scores."""


class Result(dict[str, Any]):
    """A finished evaluation in JSON types, as ``result.json`` holds it."""

    def _repr_html_(self) -> str:
        """In a notebook: the metrics."""
        from turbovlm_workbench.report.evaluation import broken, heading

        return html_table(heading(self), METRICS, metric_rows(self), " ".join(broken(self)))


METRICS = ("metric", "value", "95 % interval")
"""What `metric_rows` gives."""


def metric_rows(data: Mapping[str, Any]) -> list[list[str]]:
    """Each metric of a result with its value and its 95 % interval, as text."""
    rows = []
    for key, value in data["metrics"].items():
        ends = data["intervals"].get(key)
        rows.append(
            [key, f"{value:.4f}", "" if ends is None else f"[{ends[0]:.4f}, {ends[1]:.4f}]"]
        )
    return rows


def result(
    task: ScoredTask,
    applied: Settings,
    scores: TaskScores,
    broken: Mapping[str, str],
    seconds: float,
    examples: int,
) -> Result:
    """The result in JSON types: metrics, their 95 % bootstrap intervals, what was broken."""
    low_high = {key: interval(list(values.values()))[1:] for key, values in scores.each.items()}
    told = {
        "task": task.kind,
        "model": task.name,
        "merge": to_plain(applied),
        "examples": len(task.examples),
        "broken": dict(broken),
        "metrics": dict(scores.metrics),
        **scores.notes,
        "intervals": {key: list(ends) for key, ends in low_high.items()},
        "examples_per_second": examples / seconds if seconds else None,
    }
    return Result(told)


def mean_scores(draws: Sequence[TaskScores]) -> TaskScores:
    """The mean of every number over draws, one or more; of examples over those in all of them."""
    first = draws[0]
    metrics = {key: fmean(draw.metrics[key] for draw in draws) for key in first.metrics}
    each = {
        key: {
            name: fmean(draw.each[key][name] for draw in draws)
            for name in values
            if all(name in draw.each[key] for draw in draws)
        }
        for key, values in first.each.items()
    }
    return TaskScores(metrics, each, first.notes)


def difference(here: Path, other: Path) -> dict[str, tuple[float, float, float]]:
    """For every metric that is a mean: by how much ``here`` exceeds ``other``.

    Args:
        here: the file of scores of one run.
        other: of a run on the same examples.

    Returns:
        Mean difference and its 95 % interval, by bootstrap over the examples that both scored.

    Raises:
        InputError: if a file cannot be read or the two share no example.
    """
    ours, theirs = read_scores(here), read_scores(other)
    both = [key for key in ours if key in theirs]
    if not both:
        raise InputError(f"{other} scores none of these examples: compare runs on the same data")
    found = {}
    for metric in dict.fromkeys(metric for key in both for metric in ours[key]):
        pairs = [(ours[k].get(metric), theirs[k].get(metric)) for k in both]
        gaps = [a - b for a, b in pairs if a is not None and b is not None]
        if gaps:
            found[metric] = interval(gaps)
    return found


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """The scores of a finished run: by the id of an example those of its metrics.

    Raises:
        InputError: if they cannot be read.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return {row.pop("id"): row for row in rows}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"cannot read the scores in {path} ({error}): give the --out of a finished run"
        ) from error
