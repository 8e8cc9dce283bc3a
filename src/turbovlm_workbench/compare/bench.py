"""The bench: quality over all images, then FLOPs, memory and speed on one batch of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import turbovlm
from turbovlm.measure import Timing, environment, flops
from turbovlm.measure.speed import Ratio
from turbovlm.plug.encoder.trace import Trace
from turbovlm_workbench.compare.advice import advise, choose
from turbovlm_workbench.compare.launches import launch_sentence
from turbovlm_workbench.compare.plan import BenchPlan, Progress
from turbovlm_workbench.compare.rows import BenchReport, BenchRow, EagerSpeed, FirstToken
from turbovlm_workbench.compare.timing import Clocked, check_mode, clock
from turbovlm_workbench.compare.variants import BenchSetting, build_settings, same_operations
from turbovlm_workbench.data.images import Images
from turbovlm_workbench.metrics.measure import summarize
from turbovlm_workbench.settings import Settings, keep_of, merge_of
from turbovlm_workbench.tasks.image import ImageTask, batches, calling

COUNTED = 4  # images whose operations are counted: per image the number hardly depends on it


@dataclass(frozen=True)
class _Lengths:
    """What a `BenchRow` says of lengths."""

    tokens: int | None
    visual: int | None
    trace: Trace | None


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
        ConfigError: for a CUDA graph of a task that is more than one forward.
        ModelError: if the model can be neither compiled nor captured as the plan asks.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    check_mode(task, plan)
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
    traces = {name: lengths.trace for name, lengths in seen.items() if lengths.trace is not None}
    clocked = clock(task, first, traces, pixels, plan, progress)
    times, limits = clocked.times[plan.mode], clocked.limits[plan.mode]
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
                r=None if (trace := seen[name].trace) is None else trace.removed,
                visual=seen[name].visual,
                gflops=gflops[name],
                ideal=gflops[base] / gflops[name],
                throughput=times[name].throughput(batch),
                spread=times[name].iqr / times[name].median_s,
                speedup=_speedup(times, name, base),
                page_faults=times[name].median_page_faults,
                limit=_ratio(limits.get(name), times[base]),
                eager=_eager(clocked, name, base, batch) if len(plan.modes) > 1 else None,
                peak_mib=clocked.peaks[name],
                first_token=_first_token(clocked.first, name, base),
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
        mode=plan.mode,
        rounds=len(times[built[0].name].seconds),
        measures=task.comparisons,
        loss=task.loss,
        rows=tuple(rows),
        advice=advise(task, rows, images=len(images), batch=batch, device=kind),
        launches=launch_sentence(rows, batch, plan.mode),
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
            visual if now is None else now[1],
            trace,
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


def _speedup(times: Mapping[str, Timing], name: str, baseline: str) -> Ratio:
    if name == baseline:
        return Ratio(1.0, 1.0, 1.0)
    return times[name].speedup_over(times[baseline])


def _ratio(timing: Timing | None, reference: Timing) -> Ratio | None:
    return None if timing is None else timing.speedup_over(reference)


def _eager(clocked: Clocked, name: str, baseline: str, batch: int) -> EagerSpeed:
    times, limit = clocked.times["eager"], clocked.limits["eager"].get(name)
    speedup = _speedup(times, name, baseline)
    return EagerSpeed(times[name].throughput(batch), speedup, _ratio(limit, times[baseline]))


def _first_token(times: Mapping[str, Timing], name: str, baseline: str) -> FirstToken | None:
    if name not in times:
        return None
    return FirstToken(times[name].median_s, _speedup(times, name, baseline))
