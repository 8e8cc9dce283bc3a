"""Memory and times of every setting on one batch, each mode and the limit in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from turbovlm.errors import ConfigError, ModelError
from turbovlm.measure import Rounds, Timing, compare, peak_memory
from turbovlm.plug.encoder.trace import Trace
from turbovlm_workbench.compare.graph import captured
from turbovlm_workbench.compare.limit import dropping
from turbovlm_workbench.compare.plan import BenchPlan, Progress
from turbovlm_workbench.compare.rows import Mode
from turbovlm_workbench.compare.variants import (
    BenchSetting,
    compile_all,
    many_compilations,
    plain_twin,
)
from turbovlm_workbench.load.share import share_weights
from turbovlm_workbench.tasks.image import ImageTask, calling

Key = TypeVar("Key")
Place = tuple[Mode, bool, str]
"""Mode, whether it is the limit, and the setting's name."""


@dataclass(frozen=True)
class Clocked:
    """What was measured of one call with the whole batch.

    Attributes:
        peaks: memory in MiB by setting; None where the machine cannot tell.
        times: by mode and setting.
        limits: the same of the unmerged model that drops tokens where the setting merges.
        first: up to the first token, by setting; empty for a task that answers no prompt.
    """

    peaks: Mapping[str, float | None]
    times: Mapping[Mode, Mapping[str, Timing]]
    limits: Mapping[Mode, Mapping[str, Timing]]
    first: Mapping[str, Timing]


def check_mode(task: ImageTask[Any], plan: BenchPlan) -> None:
    """Refuse what cannot be run, before anything is.

    Raises:
        ConfigError: for a CUDA graph of a task that is more than one forward.
    """
    if plan.mode == "graph" and task.writes:
        raise ConfigError(
            f"--graph captures one forward, and {task.kind} is a loop over tokens that looks at "
            "what was written: leave --graph out, or use --compile"
        )


def clock(
    task: ImageTask[Any],
    built: Sequence[BenchSetting],
    traces: Mapping[str, Trace],
    pixels: Tensor,
    plan: BenchPlan,
    progress: Progress,
) -> Clocked:
    """Measure all settings, interleaved.

    Args:
        task: its model is the one that the settings were built of.
        built: the settings; with ``plan.mode`` compiled they are compiled here.
        traces: what each one merges, of those that merge in one encoder.
        pixels: the batch.
        plan: how to measure.
        progress: told how far each stage is.

    Raises:
        ModelError: if a model can be neither compiled nor captured as it was asked for.
    """
    limits = _limits(task, built, traces) if plan.beside and not task.writes else {}
    eager = _eager(built, limits) if plan.mode == "compiled" and plan.beside else (built, limits)
    with many_compilations(built) if plan.mode == "compiled" else nullcontext():
        if plan.mode == "compiled":
            compile_all(task, [setting.model for setting in built] + list(limits.values()))
        runs = {s.name: partial(calling(task), s.model, pixels) for s in built}
        peaks = _peaks(runs, plan, progress)
        calls: dict[Place, Callable[[], object]] = {}
        for mode in plan.modes:
            settings, dropped = (built, limits) if mode == plan.mode else eager
            models: dict[Place, nn.Module] = {(mode, False, s.name): s.model for s in settings}
            models |= {(mode, True, name): model for name, model in dropped.items()}
            for key, model in models.items():
                run = partial(calling(task), model, pixels)
                calls[key] = _captured(run, key[2]) if mode == "graph" else run
        found = _interleaved(calls, plan, "speed", progress)
        begun = task.first_token()
        first: dict[str, Timing] = {}
        if begun is not None:
            starts = {s.name: partial(calling(begun), s.model, pixels) for s in built}
            first = _interleaved(starts, plan, "first token", progress)
    times: dict[Mode, dict[str, Timing]] = {mode: {} for mode in plan.modes}
    limits_of: dict[Mode, dict[str, Timing]] = {mode: {} for mode in plan.modes}
    for (mode, limit, name), timing in found.items():
        (limits_of if limit else times)[mode][name] = timing
    return Clocked(peaks, times, limits_of, first)


def _limits(
    task: ImageTask[Any], built: Sequence[BenchSetting], traces: Mapping[str, Trace]
) -> dict[str, nn.Module]:
    """The unmerged model that drops tokens, for every setting that merges and can be followed."""
    found = {}
    for setting in built:
        trace = traces.get(setting.name)
        if trace is not None:
            plain = plain_twin(task.model, fused=setting.fused)
            found[setting.name] = dropping(plain, setting.model, trace)
    return {name: model for name, model in found.items() if model is not None}


def _eager(
    built: Sequence[BenchSetting], limits: Mapping[str, nn.Module]
) -> tuple[list[BenchSetting], dict[str, nn.Module]]:
    """The same models again, as the others are going to be compiled."""
    again = [replace(setting, model=share_weights(setting.model)) for setting in built]
    return again, {name: share_weights(model) for name, model in limits.items()}


def _peaks(
    runs: Mapping[str, Callable[[], object]], plan: BenchPlan, progress: Progress
) -> dict[str, float | None]:
    peaks: dict[str, float | None] = {}
    stage = "compilation and memory" if plan.mode == "compiled" else "memory"
    for step, (name, once) in enumerate(runs.items()):
        progress(stage, step, len(runs))
        try:
            peak = peak_memory(once, device=plan.device)
        except Exception as error:
            if not _from_compiler(error):
                raise
            raise ModelError(
                f"{name} cannot be compiled as one graph ({_cause(error)}): leave --compile out"
            ) from error
        peaks[name] = peak / 2**20 if plan.device.type in ("cpu", "cuda") else None
    return peaks


def _captured(run: Callable[[], object], name: str) -> Callable[[], object]:
    try:
        return captured(run)
    except RuntimeError as error:
        raise ModelError(
            f"{name} cannot be captured as a CUDA graph ({_cause(error)}): leave --graph out"
        ) from error


def _interleaved(
    calls: Mapping[Key, Callable[[], object]], plan: BenchPlan, stage: str, progress: Progress
) -> dict[Key, Timing]:
    steps = plan.rounds * len(calls)
    slot = iter(range(-len(calls), steps + 1))

    def tell(done: int, rounds: int, name: str) -> None:
        progress(stage, max(0, next(slot, steps)), steps)

    rounds = Rounds(plan.rounds, max_seconds=plan.seconds, warmup=1, device=plan.device)
    numbered = {str(number): call for number, call in enumerate(calls.values())}
    times = compare(numbered, rounds, tell)
    return dict(zip(calls, times.values(), strict=True))


def _from_compiler(error: Exception) -> bool:
    return any(kind.__module__.startswith("torch._dynamo") for kind in type(error).__mro__)


def _cause(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
