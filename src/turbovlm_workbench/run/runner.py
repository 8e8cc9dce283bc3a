"""Run a task: reduce, predict what is missing, score; a killed run goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import turbovlm
from turbovlm.errors import ConfigError, InputError
from turbovlm.measure import environment
from turbovlm_workbench.data.content import content_digest
from turbovlm_workbench.data.predictions import (
    BASIS,
    READ,
    Record,
    Records,
    claim,
    digest,
    json_line,
)
from turbovlm_workbench.data.predictions import replace as write_file
from turbovlm_workbench.draws import draws_of
from turbovlm_workbench.run.against import check_against, known_content
from turbovlm_workbench.run.identity import model_digest
from turbovlm_workbench.run.loading import Loaded, load_batches
from turbovlm_workbench.run.processes import Processes
from turbovlm_workbench.run.result import SCORES, Result, mean_scores, result
from turbovlm_workbench.settings import Settings, to_plain
from turbovlm_workbench.tasks.scored import ScoredTask, Stage, TaskScores

RESULT = "result.json"

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
        workers: threads that load images beside this one; 0 loads in this one.
        settings: whatever else makes this run what it is, in JSON types.
        against: the folder of a finished run that this one is to be compared with.
        command: that runs it, for the result; two commands may be of one run.
    """

    out: Path
    processes: Processes
    batch: int
    dtype: torch.dtype
    workers: int
    settings: Mapping[str, Any]
    against: Path | None = None
    command: str = ""

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
    applied: Settings,
    plan: RunPlan,
    progress: Progress = lambda stage, done, total: None,
) -> Result | None:
    """Evaluate; every process calls this, the first one gets the result.

    A method with a seed is run once for each of `draws_of`, and every number is their mean.

    Args:
        task: model and examples; the model is moved, and left without merging.
        applied: to the model; nothing for the model as it is.
        plan: how to run.
        progress: told how far the run is.

    Raises:
        InputError: if ``plan.out`` holds something else, predicted from other files or by other
            weights, if ``plan.against`` is no run on the same data, or if no example has a
            readable image.
        TurboError: whatever `turbovlm.apply` refuses; nothing is written then.
    """
    settings = {
        "task": task.kind,
        "model": task.name,
        "merge": to_plain(applied),
        "data": digest(task.fingerprint()),
        **plan.settings,
    }
    if plan.processes.leads:
        if plan.against is not None:
            check_against(plan.against, settings)
        settings["weights"] = model_digest(task.parts)
    task.model.eval().to(device=plan.processes.device, dtype=plan.dtype)
    draws = draws_of(applied)
    clock = Clock()
    broken: dict[str, str] = {}
    found: list[TaskScores] = []
    for number, draw in enumerate(draws, start=1):
        with turbovlm.applied(task.patched, *draw) if draw else nullcontext():
            if plan.processes.leads and number == 1:
                claim(plan.out, settings)
            plan.processes.wait()
            if len(draws) == 1:
                found.append(_stages(task, plan, clock, broken, progress))
                continue
            place = replace(plan, out=plan.out / f"draw{number}")
            if plan.processes.leads:
                place.out.mkdir(exist_ok=True)
            plan.processes.wait()
            found.append(_stages(task, place, clock, broken, _of(progress, number, len(draws))))
    if not plan.processes.leads:
        return None
    scores = mean_scores(found)
    done = result(task, applied, scores, broken, clock.seconds, clock.examples)
    told = {"command": plan.command, "settings": settings}
    done = Result({**told, **done, "draws": len(draws), "environment": environment()})
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
    found = here.read(stage.basis)
    other = {} if plan.against is None else known_content(plan.against, stage.name)
    _check_files(stage, found, plan, other)
    # a broken image may have been repaired since
    todo = [i for i, key in enumerate(stage.ids) if "error" in found.get(key, {"error": None})]
    todo = todo[processes.rank :: processes.size]
    total = len(stage.ids) if processes.size == 1 else len(todo)
    begun = total - len(todo)
    progress(stage.name, begun, total)
    processes.wait()  # none writes before all have read
    for number, batch in enumerate(load_batches(stage, todo, plan.batch, plan.workers)):
        good = [one for one in batch if one.broken is None]
        for one in good:
            _check_content(stage.ids[one.index], one.read, other, plan)
        start = time.perf_counter()
        with torch.inference_mode():
            predictions = stage.predict([one.value for one in good]) if good else []
        if number:
            clock.seconds += time.perf_counter() - start
            clock.examples += len(good)
        new = {
            stage.ids[one.index]: record
            for one, record in [
                *zip(good, predictions, strict=True),
                *((one, {"error": one.broken}) for one in batch if one.broken is not None),
            ]
        }
        read = {stage.ids[one.index]: one for one in batch}
        here.append({key: _marked(record, read[key], stage.basis) for key, record in new.items()})
        progress(stage.name, begun + min((number + 1) * plan.batch, len(todo)), total)
    processes.wait()
    if processes.leads:
        here.finish(stage.ids, stage.basis)
    processes.wait()
    return here.read(stage.basis)


def _marked(record: Record, loaded: Loaded, basis: str) -> Record:
    """The record with what it was predicted from, where that is a file or earlier records."""
    marks = {READ: loaded.read, BASIS: basis}
    return {**record, **{key: mark for key, mark in marks.items() if mark}}


def _check_files(
    stage: Stage, found: Mapping[str, Record], plan: RunPlan, other: Mapping[str, str]
) -> None:
    """Check that this process's share of the kept records is of the files as they are now."""
    kept = [i for i, key in enumerate(stage.ids) if "error" not in found.get(key, {"error": None})]
    for index in kept[plan.processes.rank :: plan.processes.size]:
        files = stage.files(index)
        if not files:
            continue
        key, now = stage.ids[index], content_digest(files)
        if found[key].get(READ) != now:
            raise InputError(
                f"--out {plan.out} holds predictions of {key} from another "
                f"{' or '.join(map(str, files))} than there is now: choose another --out, or "
                "remove that folder to begin anew"
            )
        _check_content(key, now, other, plan)


def _check_content(key: str, read: str, other: Mapping[str, str], plan: RunPlan) -> None:
    if key in other and other[key] != read:
        raise InputError(
            f"--against {plan.against} read another image for {key}: compare runs on the same "
            "images"
        )


def _of(progress: Progress, number: int, draws: int) -> Progress:
    return lambda stage, done, total: progress(f"{stage}, draw {number} of {draws}", done, total)


def _earlier(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(folder: Path, done: Result, scores: TaskScores) -> None:
    ids = dict.fromkeys(key for values in scores.each.values() for key in values)
    rows = ({"id": key, **{m: v[key] for m, v in scores.each.items() if key in v}} for key in ids)
    write_file(folder / SCORES, "".join(json_line(row) for row in rows))
    write_file(folder / RESULT, json.dumps(done, indent=2) + "\n")
