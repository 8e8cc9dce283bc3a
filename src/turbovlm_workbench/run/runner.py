"""Run an task: merge, predict what is missing, score; a killed run goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

import turbovlm
from turbovlm.config import Merge, MergeRestore
from turbovlm.errors import ConfigError, InputError
from turbovlm.measure import environment
from turbovlm_workbench.data.predictions import Record, Records, claim, digest, replace
from turbovlm_workbench.run.processes import Processes
from turbovlm_workbench.run.result import Result, result
from turbovlm_workbench.tasks.scored import ScoredTask, Stage, TaskScores

RESULT, SCORES = "result.json", "scores.jsonl"

Progress = Callable[[str, int, int], object]
"""Called with the stage, the examples done and the examples in all."""


@dataclass(frozen=True)
class RunPlan:
    """How to run.

    Args:
        out: the folder of the records and the result.
        processes: the processes.
        batch: examples per call.
        dtype: number format of weights and pixels.
        workers: processes that load images beside this one; 0 loads in this one.
        settings: whatever else makes this run what it is, in JSON types.
    """

    out: Path
    processes: Processes
    batch: int
    dtype: torch.dtype
    workers: int
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"--batch must be at least 1, got {self.batch}")
        if self.workers < 0:
            raise ConfigError(f"--workers must not be negative, got {self.workers}: use 0 for none")


@dataclass
class Clock:
    """Time spent in predictions, the first batch of a stage left out: it warms up."""

    seconds: float = 0.0
    examples: int = 0


def run_task(
    task: ScoredTask,
    merge: Merge | MergeRestore | None,
    plan: RunPlan,
    progress: Progress = lambda stage, done, total: None,
) -> Result | None:
    """Evaluate; every process of the processes calls this, the first one gets the result.

    Args:
        task: model and examples; the model is moved, and left without merging.
        merge: the setting, None for the model as it is.
        plan: how to run.
        progress: told how far the run is.

    Raises:
        InputError: if ``plan.out`` holds something else, or no example has a readable image.
        TurboError: whatever `turbovlm.apply` refuses; nothing is written then.
    """
    task.model.eval().to(device=plan.processes.device, dtype=plan.dtype)
    with nullcontext() if merge is None else turbovlm.applied(task.patched, merge):
        settings = {
            "task": task.kind,
            "model": task.name,
            "merge": None if merge is None else merge.to_dict(),
            "data": digest(task.fingerprint()),
            **plan.settings,
        }
        if plan.processes.leads:
            claim(plan.out, settings)
        plan.processes.wait()
        clock = Clock()
        broken: dict[str, str] = {}
        scores = _stages(task, plan, clock, broken, progress)
    if not plan.processes.leads:
        return None
    done = result(task, merge, scores, broken, clock.seconds, clock.examples)
    done = {"settings": settings, **done, "environment": environment()}
    if done["examples_per_second"] is None:  # all was predicted before
        done["examples_per_second"] = _earlier(plan.out / RESULT).get("examples_per_second")
    _write(plan.out, done, scores)
    return done


def _stages(
    task: ScoredTask,
    plan: RunPlan,
    clock: Clock,
    broken: dict[str, str],
    progress: Progress,
) -> TaskScores:
    stages = task.stages()
    stage = next(stages)
    while True:
        records = _predict(stage, plan, clock, progress)
        bad = {key: record["error"] for key, record in records.items() if "error" in record}
        broken.update(bad)
        if len(bad) == len(records):
            first = next(iter(bad.values()))
            raise InputError(f"no image of the {len(records)} examples can be read: {first}")
        try:
            stage = stages.send({key: r for key, r in records.items() if key not in bad})
        except StopIteration as end:
            return end.value


def _predict(stage: Stage, plan: RunPlan, clock: Clock, progress: Progress) -> dict[str, Record]:
    """The records of a whole stage, predicting those that are not on disk yet."""
    processes = plan.processes
    here = Records(plan.out, stage.name, processes.rank)
    found = here.read()
    # a broken image may have been repaired since
    todo = [i for i, key in enumerate(stage.ids) if "error" in found.get(key, {"error": None})]
    todo = todo[processes.rank :: processes.size]
    total = len(stage.ids) if processes.size == 1 else len(todo)
    begun = total - len(todo)
    progress(stage.name, begun, total)
    processes.wait()  # none writes before all have read
    loader = DataLoader(
        _Loading(stage, todo),
        batch_size=plan.batch,
        num_workers=min(plan.workers, len(todo)),
        collate_fn=list,
    )
    for number, batch in enumerate(loader):
        good = [(index, value) for index, value in batch if not isinstance(value, _Broken)]
        start = time.perf_counter()
        with torch.inference_mode():
            predictions = stage.predict([value for _, value in good]) if good else []
        if number:
            clock.seconds += time.perf_counter() - start
            clock.examples += len(good)
        new = {stage.ids[i]: p for (i, _), p in zip(good, predictions, strict=True)}
        new |= {stage.ids[i]: {"error": v.why} for i, v in batch if isinstance(v, _Broken)}
        here.append(new)
        progress(stage.name, begun + min((number + 1) * plan.batch, len(todo)), total)
    processes.wait()
    if processes.leads:
        here.finish(stage.ids)
    processes.wait()
    return here.read()


@dataclass(frozen=True)
class _Broken:
    """Stands for an input that could not be loaded."""

    why: str


class _Loading(Dataset[tuple[int, Any]]):
    """Examples ``todo`` of a stage, each with its index; a broken one is a value too."""

    def __init__(self, stage: Stage, todo: list[int]) -> None:
        self.stage, self.todo = stage, todo

    def __len__(self) -> int:
        return len(self.todo)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        index = self.todo[position]
        try:
            return index, self.stage.load(index)
        except InputError as error:
            return index, _Broken(str(error))


def _earlier(path: Path) -> Result:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(folder: Path, done: Result, scores: TaskScores) -> None:
    ids = dict.fromkeys(key for values in scores.each.values() for key in values)
    rows = ({"id": key, **{m: v[key] for m, v in scores.each.items() if key in v}} for key in ids)
    replace(folder / SCORES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    replace(folder / RESULT, json.dumps(done, indent=2, ensure_ascii=False) + "\n")
