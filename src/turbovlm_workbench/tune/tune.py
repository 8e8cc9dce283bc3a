"""The setting chosen for you: the fastest whose loss stays within a promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turbovlm.measure import environment
from turbovlm.measure.speed import Ratio
from turbovlm.notebook import html_table
from turbovlm_workbench.compare.advice import GAIN
from turbovlm_workbench.compare.bench import run_bench
from turbovlm_workbench.compare.plan import BenchPlan, Progress
from turbovlm_workbench.compare.rows import BenchReport
from turbovlm_workbench.data.images import FirstImages, Images
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.settings import to_plain
from turbovlm_workbench.tasks.image import ImageTask
from turbovlm_workbench.tune.goal import Goal
from turbovlm_workbench.tune.search import Search, Timer
from turbovlm_workbench.tune.trials import Part, Trial, split_images


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Attributes:
        model: the name it was loaded by.
        task: kind of the task.
        max_loss: the promise.
        loss: what it is about, see `ImageTask.loss`.
        measures: the other numbers of quality.
        seed: of the split.
        batch: images per timed call.
        device: where it ran.
        dtype: number format, e.g. ``"float32"``.
        merge_time: what a merge took here, in times of a block.
        chosen: the accepted trial; None where none was accepted, or its speed is no gain.
        closest: the accepted trial, also where its speed is no gain.
        speedup: of ``closest`` over the unmerged model, measured; None if none was accepted.
        beside: a bench of ``closest`` on one batch, where ``plan.beside`` asks for the limit; on a
            CUDA device in a CUDA graph too, if the task is one forward.
        trials: every evaluation, in order.
        environment: the machine and the versions of the libraries.
    """

    model: str
    task: str
    max_loss: float
    loss: Measure
    measures: tuple[Measure, ...]
    seed: int
    batch: int
    device: str
    dtype: str
    merge_time: float
    chosen: Trial | None
    closest: Trial | None
    speedup: Ratio | None
    beside: BenchReport | None
    trials: tuple[Trial, ...]
    environment: Mapping[str, Any]

    def _repr_html_(self) -> str:
        """In a notebook: the evaluations, the chosen one with weight, and the result."""
        from turbovlm_workbench.report.tune import (
            shown_trials,
            tune_cells,
            tune_headers,
            tune_result,
        )

        strong = [n for n, trial in enumerate(shown_trials(self)) if trial == self.chosen]
        title, said = f"{self.task} of {self.model}", tune_result(self)
        return html_table(title, tune_headers(self), tune_cells(self), said, strong)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``"settings"`` is what was chosen, or None."""

        def plain(trial: Trial | None) -> dict[str, Any] | None:
            return trial and {**dataclasses.asdict(trial), "settings": to_plain(trial.settings)}

        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["settings"] = None if self.chosen is None else to_plain(self.chosen.settings)
        for name in ("chosen", "closest"):
            data[name] = plain(data[name])
        for name in ("loss", "speedup"):
            data[name] = None if data[name] is None else dataclasses.asdict(data[name])
        data["beside"] = None if self.beside is None else self.beside.to_dict()
        data["measures"] = [dataclasses.asdict(measure) for measure in self.measures]
        data["trials"] = [plain(trial) for trial in self.trials]
        data["environment"] = dict(self.environment)
        return data


def tune(
    task: ImageTask[Any],
    images: Images,
    goal: Goal,
    plan: BenchPlan,
    *,
    timer: Timer | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Tuned:
    """Find the fastest setting whose loss on images not searched with is within the promise.

    The search ranks by drift and by a seeded third of the images. It times a merge, probes the
    blocks one by one, and allocates removals to them (`tune.allocate`) in a few shapes, of which
    the paper's constant r and those of ``Merge(speedup=...)`` are three; it times these, and
    compares the semantic weights. Then it climbs a ladder of ever more savings with the best two
    shapes, and ladders of fewer visual tokens where the goal has some. From four fifths of the
    height that keeps the promise there, it climbs on over the other images: a rung is accepted if
    the 95 % bound of its mean loss is within the promise, and the last one before the first that
    is not counts. The accepted ones are timed.

    Args:
        task: a loaded model; it is moved to the device and number format of ``plan``.
        images: at least 20.
        goal: the promise, the split, and what may be tried.
        plan: batch, device, number format and rounds of timing.
        timer: times calls; by default `turbovlm.measure.compare` on the device.
        progress: told how far each stage is.

    Raises:
        InputError: for too few images, or one that cannot be decoded.
        ModelError: if outputs are no numbers in this number format.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    searched, held = split_images(len(images), goal.seed)
    task.model.to(device=plan.device, dtype=plan.dtype)
    search = Search(task, images, searched, plan, timer, progress)
    ladders = search.ladders(goal)
    rungs = [search.climb(ladder, goal.max_loss) for ladder in ladders]
    held_out = Part(task, images, held, plan.batch, keep=False)
    tried = [
        search.validate(held_out, *pair, goal.max_loss) for pair in zip(ladders, rungs, strict=True)
    ]
    kept = [trial for trial in tried if trial is not None]
    speeds = search.speed([trial.settings for trial in kept], plan.rounds) if kept else []
    fastest = max(range(len(kept)), key=lambda index: speeds[index].value, default=None)
    accepted, speedup = (None, None) if fastest is None else (kept[fastest], speeds[fastest])
    worth = speedup is not None and speedup.value >= GAIN and speedup.low > 1
    beside = None
    if plan.beside and accepted is not None:
        beside = _beside(task, FirstImages(images, plan.batch), accepted, plan, progress)
    return Tuned(
        model=task.name,
        task=task.kind,
        max_loss=goal.max_loss,
        loss=task.loss,
        measures=task.comparisons,
        seed=goal.seed,
        batch=plan.batch,
        device=plan.device.type,
        dtype=str(plan.dtype).removeprefix("torch."),
        merge_time=search.stack.merge,
        chosen=accepted if worth else None,
        closest=accepted,
        speedup=speedup,
        beside=beside,
        trials=tuple(search.trials),
        environment=environment(plan.device),
    )


def _beside(
    task: ImageTask[Any], images: Images, trial: Trial, plan: BenchPlan, progress: Progress
) -> BenchReport:
    """A bench of the setting on one batch, with the most that dropping tokens can give here."""
    graphs = plan.device.type == "cuda" and not task.writes
    plan = dataclasses.replace(plan, mode="graph" if graphs else "eager")
    return run_bench(task.select(range(len(images))), images, [trial.settings], plan, progress)
