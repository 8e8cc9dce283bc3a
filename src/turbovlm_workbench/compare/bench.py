"""The bench: quality over all images, then FLOPs, memory and speed on one batch of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import turbovlm
from turbovlm.errors import ConfigError, ModelError
from turbovlm.measure import Timing, compare, environment, flops, peak_memory
from turbovlm.measure.speed import Ratio
from turbovlm.plug.encoder.trace import Trace
from turbovlm_workbench.compare.advice import advise, choose
from turbovlm_workbench.compare.rows import BenchReport, BenchRow, FirstToken
from turbovlm_workbench.compare.variants import (
    BenchSetting,
    build_settings,
    compile_all,
    many_compilations,
    same_operations,
)
from turbovlm_workbench.data.images import Images
from turbovlm_workbench.metrics.measure import summarize
from turbovlm_workbench.settings import Settings, keep_of, merge_of
from turbovlm_workbench.tasks.image import ImageTask, batches, calling

COUNTED = 4  # images whose operations are counted: per image the number hardly depends on it

Progress = Callable[[str, int, int], object]
"""Called with the stage, the steps done and the steps in all."""


@dataclass(frozen=True)
class BenchPlan:
    """How to measure.

    Args:
        batch: images per call; fewer where the folder holds fewer.
        device: where to run.
        dtype: number format of weights and pixels.
        compiled: run both sides of every ratio under torch.compile.
        fused: also fuse BLIP's attention, see `turbovlm.fuse_attention`.
        rounds: interleaved rounds to time.
        seconds: begin no further round after so many; two are run in any case.
    """

    batch: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    fused: bool = False
    rounds: int = 10
    seconds: float = math.inf

    def __post_init__(self) -> None:
        for name in ("batch", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class _Lengths:
    """What a `BenchRow` says of lengths."""

    tokens: int | None
    r: tuple[int, ...] | None
    visual: int | None


def run_bench(
    task: ImageTask[Any],
    images: Images,
    variants: Sequence[Settings],
    plan: BenchPlan,
    progress: Progress = lambda stage, done, total: None,
) -> BenchReport:
    """Measure the unmerged model and every variant.

    Args:
        task: a loaded model; it is moved to the device and number format of ``plan``.
        images: at least one.
        variants: what is applied together, see `turbovlm_workbench.settings.combined`.
        plan: how to measure.
        progress: told how far the run is.

    Raises:
        InputError: for an image that cannot be decoded.
        ModelError: if the model cannot be compiled.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    task.model.to(device=plan.device, dtype=plan.dtype)
    built = build_settings(task.model, variants, fused=plan.fused)
    batch = min(plan.batch, len(images))
    pixels = task.pixels([images.image(index) for index in range(batch)])
    quality = _quality(task, built, images, batch, progress)
    # Where only the value of alpha differs the operations are the same: one stands for all.
    kinds = {setting.name: (setting.fused, same_operations(setting.settings)) for setting in built}
    measured = {kinds[setting.name]: setting for setting in reversed(built)}
    first = [setting for setting in built if measured[kinds[setting.name]] is setting]
    seen = _lengths(task, first, pixels[:1])
    counted = pixels[:COUNTED]
    gflops = {}
    for step, setting in enumerate(first):
        progress("operations", step, len(first))
        count = flops(setting.model, counted, call=calling(task)).gflops
        gflops[setting.name] = count / len(counted)
    # Compiled code is for speed alone: it computes the same up to rounding.
    with many_compilations(first) if plan.compiled else nullcontext():
        peaks, times = _run_batch(task, first, pixels, plan, progress)
        started = _first_tokens(task, first, pixels, plan, progress)
    rows = []
    for setting in built:
        name, base = measured[kinds[setting.name]].name, setting.baseline
        rows.append(
            BenchRow(
                name=setting.name,
                settings=setting.settings,
                fused=setting.fused,
                baseline=base,
                tokens=seen[name].tokens,
                r=seen[name].r,
                visual=seen[name].visual,
                gflops=gflops[name],
                ideal=gflops[base] / gflops[name],
                throughput=times[name].throughput(batch),
                spread=times[name].iqr / times[name].median_s,
                speedup=_speedup(times, name, base),
                page_faults=times[name].median_page_faults,
                peak_mib=peaks[name],
                first_token=None if started is None else _first_token(started, name, base),
                quality=quality[setting.name],
            )
        )
    kind = plan.device.type
    return BenchReport(
        model=task.name,
        task=task.kind,
        images=len(images),
        batch=batch,
        device=kind,
        dtype=str(plan.dtype).removeprefix("torch."),
        compiled=plan.compiled,
        rounds=len(times[built[0].name].seconds),
        measures=task.comparisons,
        loss=task.loss,
        rows=tuple(rows),
        advice=advise(task, rows, images=len(images), batch=batch, device=kind),
        advised=chosen.name if (chosen := choose(task, rows, len(images))) else None,
        environment=environment(plan.device),
    )


def _lengths(
    task: ImageTask[Any], built: Sequence[BenchSetting], pixels: Tensor
) -> dict[str, _Lengths]:
    """By setting, as seen in one forward of each that reduces."""
    merged: dict[str, Trace] = {}
    kept: dict[str, tuple[int, int]] = {}
    for setting in built:
        if not setting.settings:
            continue
        with turbovlm.recording(setting.model) as recorded:
            task.outputs(setting.model, pixels)
        if merge_of(setting.settings) is not None:
            merged[setting.name] = recorded.trace
        if keep_of(setting.settings) is not None:
            images = recorded.visual.images
            before = sum(len(image.owner) for image in images)
            kept[setting.name] = before, sum(len(image.kept) for image in images)
    tokens = next((trace.start for trace in merged.values()), None)
    visual = next((before for before, _ in kept.values()), None)
    found = {}
    for setting in built:
        trace, now = merged.get(setting.name), kept.get(setting.name)
        found[setting.name] = _Lengths(
            tokens if trace is None else trace.tokens[-1],
            None if trace is None else trace.removed,
            visual if now is None else now[1],
        )
    return found


def _quality(
    task: ImageTask[Any],
    built: Sequence[BenchSetting],
    images: Images,
    batch: int,
    progress: Progress,
) -> dict[str, Mapping[str, float]]:
    measures = (*task.comparisons, task.loss)
    scores: dict[str, list[dict[str, float]]] = {setting.name: [] for setting in built}
    for start, pixels in batches(task, images, range(len(images)), batch):
        reference: Any = None
        for step, setting in enumerate(built):
            done = start * len(built) + step * len(pixels)
            progress("quality", done, len(images) * len(built))
            for model in (setting.model, *setting.more):
                output = task.outputs(model, pixels)
                reference = output if reference is None else reference
                scores[setting.name] += task.compare(reference, output, start)
    return {name: summarize(measures, of_images) for name, of_images in scores.items()}


def _run_batch(
    task: ImageTask[Any],
    built: Sequence[BenchSetting],
    pixels: Tensor,
    plan: BenchPlan,
    progress: Progress,
) -> tuple[dict[str, float | None], dict[str, Timing]]:
    """Peak memory in MiB and the times of one call, by setting."""
    device = plan.device
    runs = {s.name: partial(calling(task), s.model, pixels) for s in built}
    if plan.compiled:
        compile_all(task, built)
    peaks: dict[str, float | None] = {}
    for step, (name, once) in enumerate(runs.items()):
        progress("compilation and memory" if plan.compiled else "memory", step, len(runs))
        try:
            peak = peak_memory(once, device=device)
        except Exception as error:
            if not _from_compiler(error):
                raise
            cause = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise ModelError(
                f"{name} cannot be compiled as one graph ({cause}): leave --compile out"
            ) from error
        peaks[name] = peak / 2**20 if device.type in ("cpu", "cuda") else None
    steps = plan.rounds * len(runs)
    slot = iter(range(-len(runs), steps + 1))

    def tell(done: int, rounds: int, name: str) -> None:
        progress("speed", max(0, next(slot, steps)), steps)

    times = compare(
        runs, rounds=plan.rounds, max_seconds=plan.seconds, warmup=1, device=device, progress=tell
    )
    return peaks, times


def _first_tokens(
    task: ImageTask[Any],
    built: Sequence[BenchSetting],
    pixels: Tensor,
    plan: BenchPlan,
    progress: Progress,
) -> dict[str, Timing] | None:
    """Times up to the first token, by setting; None for a task that answers no prompt."""
    first = task.first_token()
    if first is None:
        return None
    runs = {s.name: partial(calling(first), s.model, pixels) for s in built}
    steps = plan.rounds * len(runs)
    slot = iter(range(-len(runs), steps + 1))

    def tell(done: int, rounds: int, name: str) -> None:
        progress("first token", max(0, next(slot, steps)), steps)

    return compare(
        runs,
        rounds=plan.rounds,
        max_seconds=plan.seconds,
        warmup=1,
        device=plan.device,
        progress=tell,
    )


def _first_token(times: Mapping[str, Timing], name: str, baseline: str) -> FirstToken:
    return FirstToken(times[name].median_s, _speedup(times, name, baseline))


def _from_compiler(error: Exception) -> bool:
    return any(kind.__module__.startswith("torch._dynamo") for kind in type(error).__mro__)


def _speedup(times: Mapping[str, Timing], name: str, baseline: str) -> Ratio:
    if name == baseline:
        return Ratio(1.0, 1.0, 1.0)
    return times[name].speedup_over(times[baseline])
