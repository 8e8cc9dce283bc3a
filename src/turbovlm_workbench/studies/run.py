"""Run studies: every distinct setting is evaluated once, into a folder of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

import turbovlm
from turbovlm import hosts
from turbovlm.config import Merge
from turbovlm.errors import InputError
from turbovlm.measure import environment
from turbovlm.measure.flops import flops
from turbovlm.plug.encoder.find import find_towers
from turbovlm.plug.encoder.trace import Trace
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.run.result import SCORES, difference
from turbovlm_workbench.run.runner import RunPlan, run_task
from turbovlm_workbench.studies.arm import BASE, Arm, Shape, Study, arm_setting
from turbovlm_workbench.tasks.scored import ScoredTask, Stage

Progress = Callable[[str, int, int], object]
UNMERGED = "unmerged"
Gap = tuple[float, float, float]
"""A mean difference, and the ends of its 95 % interval."""


@dataclass(frozen=True)
class ArmResult:
    """One arm, evaluated.

    Attributes:
        label, x, line, published: of the arm.
        setting: as one would write it.
        tokens: left after the last block.
        ideal: how many times fewer operations the encoder needs than unmerged, counted.
        metrics: by the key of the measure.
        gaps: likewise, difference to the unmerged model: mean and 95 % interval, paired by example,
            of those metrics that are means.
        beside: likewise, difference to the base of the study; nothing for the base.
    """

    label: str
    x: float | None
    line: str
    published: tuple[float, ...]
    setting: str
    tokens: int
    ideal: float
    metrics: Mapping[str, float]
    gaps: Mapping[str, Gap]
    beside: Mapping[str, Gap]


@dataclass(frozen=True)
class StudyResult:
    """A finished study: what it is, and its arms in order.

    Attributes:
        base: label of the arm that the others are compared with: the paper's setting, or the first
            arm of a study without it.
    """

    name: str
    title: str
    source: str
    columns: tuple[str, ...]
    axis: str
    within: float | None
    base: str
    arms: tuple[ArmResult, ...]


@dataclass(frozen=True)
class Ablation:
    """Finished studies of one model.

    Attributes:
        model, task: their names.
        examples: how many were scored.
        shape: of the encoder.
        gflops: of the unmerged encoder, one example.
        measures: of the task, those that the runs have.
        unmerged: its metrics.
        studies: the results.
        environment: the machine and the versions of the libraries.
    """

    model: str
    task: str
    examples: int
    shape: Shape
    gflops: float
    measures: tuple[Measure, ...]
    unmerged: Mapping[str, float]
    studies: tuple[StudyResult, ...]
    environment: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        studies = []
        for study in data["studies"]:
            arms = tuple(
                ArmResult(**{**arm, "published": tuple(arm["published"])}) for arm in study["arms"]
            )
            studies.append(
                StudyResult(**{**study, "columns": tuple(study["columns"]), "arms": arms})
            )
        whole = {**data, "shape": Shape(**data["shape"]), "studies": tuple(studies)}
        return cls(**{**whole, "measures": tuple(Measure(**m) for m in data["measures"])})


def run_studies(
    task: ScoredTask,
    studies: Sequence[Study],
    plan: RunPlan,
    r: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Ablation:
    """Evaluate the unmerged model and every arm; a killed run goes on where it was.

    Args:
        task: model and examples.
        studies: what to run.
        plan: how; ``plan.out`` gets a folder for each setting.
        r: the drop ratio that stands for the paper's 30 of 576; None for the same share of this
            model's tokens.
        progress: told how far the run is.

    Raises:
        InputError: if ``plan.out`` holds other runs.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    task.model.eval().to(device=plan.processes.device, dtype=plan.dtype)
    encoder = _Encoder(task)
    shape = encoder.shape
    scale = 1.0 if r is None else r * shape.depth / (BASE * shape.patches)
    todo = {
        (study.name, arm.label): arm_setting(arm, shape, scale)
        for study in studies
        for arm in study.arms
    }
    papers = arm_setting(Arm("", {"alpha": 6.0}), shape, scale)
    distinct = list(dict.fromkeys(todo.values()))
    first = _evaluate(task, None, plan)
    results: dict[Merge, tuple[Any, Any, int, float]] = {}
    for number, merge in enumerate(distinct):
        progress(f"{number + 1} of {len(distinct)} settings", number, len(distinct))
        tokens, cost = encoder.cost(merge)
        results[merge] = *_evaluate(task, merge, plan), tokens, encoder.whole / cost

    def finished(study: Study) -> StudyResult:
        merges = [todo[study.name, arm.label] for arm in study.arms]
        base = merges.index(papers) if papers in merges else 0
        other = _place(plan, merges[base]) / SCORES
        arms = []
        for arm, merge in zip(study.arms, merges, strict=True):
            metrics, gaps, tokens, ideal = results[merge]
            told = arm.label, arm.x, arm.line, arm.published
            same = merge == merges[base]
            beside = {} if same else difference(_place(plan, merge) / SCORES, other)
            arms.append(ArmResult(*told, repr(merge), tokens, ideal, metrics, gaps, beside))
        about = study.name, study.title, study.source, study.columns, study.axis, study.within
        return StudyResult(*about, study.arms[base].label, tuple(arms))

    return Ablation(
        model=task.name,
        task=task.kind,
        examples=len(task.examples),
        shape=shape,
        gflops=encoder.whole / 1e9,
        measures=tuple(m for m in task.measures if m.key in first[0]),
        unmerged=first[0],
        studies=tuple(finished(study) for study in studies),
        environment=environment(plan.processes.device),
    )


def _evaluate(task: ScoredTask, merge: Merge | None, plan: RunPlan) -> tuple[Any, Any]:
    """Metrics, and their differences to the unmerged run beside this one."""
    plain, here = _place(plan, None), _place(plan, merge)
    here.parent.mkdir(parents=True, exist_ok=True)
    done = run_task(task, () if merge is None else (merge,), replace(plan, out=here))
    assert done is not None
    gaps = {} if merge is None else difference(here / SCORES, plain / SCORES)
    return done["metrics"], gaps


def _place(plan: RunPlan, merge: Merge | None) -> Path:
    """The folder of a setting, which no other one has."""
    if merge is None:
        return plan.out / UNMERGED
    text = json.dumps(merge.to_dict(), sort_keys=True)
    return plan.out / f"{merge.method}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


class _Encoder:
    """The encoder that is merged, on the first example that can be read.

    Attributes:
        shape: its blocks and tokens.
        whole: its multiply-adds, unmerged.
    """

    def __init__(self, task: ScoredTask) -> None:
        self.model = task.patched
        self.tower = find_towers(self.model, hosts.rows(), hosts.REFUSALS)[0].module
        stage = next(task.stages())
        value = _first(stage)
        seen: list[tuple[Any, Any]] = []
        handle = self.tower.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
        )
        try:
            with torch.inference_mode():
                stage.predict([value])
        finally:
            handle.remove()
        self.args, self.kwargs = seen[0]
        tokens, self.whole = self._run(Merge(r=0))
        self.shape = Shape(len(tokens.plans), tokens.start, tokens.prefix_tokens)

    def cost(self, merge: Merge) -> tuple[int, int]:
        """Tokens after the last block, and multiply-adds."""
        trace, macs = self._run(merge)
        return trace.tokens[-1], macs

    def _run(self, merge: Merge) -> tuple[Trace, int]:
        with torch.inference_mode(), turbovlm.applied(self.model, merge) as run:
            counted = flops(self.tower, self.args, call=lambda m, _: m(*self.args, **self.kwargs))
            return run.traces[0], counted.macs


def _first(stage: Stage) -> Any:
    """What the first example that can be read loads as."""
    last = InputError("there is no example: give at least one")
    for index in range(len(stage.ids)):
        try:
            return stage.load(index)
        except InputError as error:
            last = error
    raise last
