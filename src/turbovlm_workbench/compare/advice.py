"""One sentence of advice from a table of results; "no gain" where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from turbovlm_workbench.compare.rows import BenchRow
from turbovlm_workbench.settings import keep_of, merge_of
from turbovlm_workbench.tasks.image import ImageTask

GAIN = 1.03  # a smaller speed-up is not worth a changed model
NOISE = 0.2  # an interval wider than this share of the speed-up says nothing
TIE = 0.05  # settings this close in speed, or closer, are told apart by quality


def choose(task: ImageTask[Any], rows: Sequence[BenchRow], images: int) -> BenchRow | None:
    """The fastest setting whose loss is small; None if there is none.

    Settings of one speed are told apart by their agreement, and where that differs by less than
    its standard error over the images, the one that stands first is taken.

    Args:
        task: knows which loss is small.
        rows: the unmerged model first.
        images: that quality was measured on.
    """
    good = [row for row in _faster(rows) if task.acceptable(row.quality, rows[0].quality)]
    if not good:
        return None
    fastest = max(row.speedup.value for row in good)
    level = [row for row in good if row.speedup.value >= fastest * (1 - TIE)]
    agreement = {row.name: row.quality[task.agreement.key] for row in level}
    best = max(agreement.values())
    return next(
        row
        for row in level
        if best - agreement[row.name] <= _error(best, agreement[row.name], images)
    )


def _error(one: float, other: float, images: int) -> float:
    """The standard error of the difference of two shares, at most."""
    return math.sqrt(sum(max(share * (1 - share), 0.0) for share in (one, other)) / images)


def advise(
    task: ImageTask[Any], rows: Sequence[BenchRow], *, images: int, batch: int, device: str
) -> str:
    """One sentence: the setting to use and the line that switches it on, or why there is none.

    Args:
        task: knows which loss is small.
        rows: the unmerged model first.
        images: that quality was measured on.
        batch: images per call in the measurement.
        device: the kind of device, e.g. ``"cpu"``.
    """
    if chosen := choose(task, rows, images):
        return (
            f"Use {chosen.name}: {chosen.speedup.value:.2f}x the speed of {chosen.baseline} at "
            f"batch {batch} on this {device}, {_quality(task, chosen, rows[0])}; switch it on "
            f"with {chosen.code}."
        )
    if faster := _faster(rows):
        closest = max(faster, key=lambda row: row.quality[task.agreement.key])
        return (
            f"No setting is both faster and close to the unmerged model ({task.tolerance}): the "
            f"closest, {closest.name}, has {closest.speedup.value:.2f}x the speed, "
            f"{_quality(task, closest, rows[0])}; try {_gentler(closest)}."
        )
    return _no_gain([row for row in rows if row.settings], batch, device)


def _faster(rows: Sequence[BenchRow]) -> list[BenchRow]:
    return [
        row for row in rows if row.settings and row.speedup.value >= GAIN and row.speedup.low > 1
    ]


def _quality(task: ImageTask[Any], row: BenchRow, unmerged: BenchRow) -> str:
    parts = []
    for measure in task.comparisons:
        now, before = row.quality[measure.key], unmerged.quality[measure.key]
        if measure.key in ("accuracy", "attributes"):
            parts.append(f"{measure.title} {measure.text(now)} instead of {measure.text(before)}")
        elif measure == task.agreement:
            parts.append(f"{measure.title} {measure.text(now)}")
    return ", ".join(parts)


def _gentler(row: BenchRow) -> str:
    flag = _flag(row)
    return f"a {'larger' if flag == '--keep' else 'smaller'} {flag}"


def _more(row: BenchRow) -> str:
    flag = _flag(row)
    return f"a {'smaller' if flag == '--keep' else 'larger'} {flag}"


def _flag(row: BenchRow) -> str:
    """What says on the command line how much a row reduces."""
    if keep_of(row.settings) is not None:
        return "--keep"
    merge = merge_of(row.settings)
    return "--r" if merge is None or merge.speedup is None else "--speedup"


def _no_gain(merged: Sequence[BenchRow], batch: int, device: str) -> str:
    if not merged:
        return "Nothing was merged: give --r a value above 0, or --speedup one above 1."
    best = max(merged, key=lambda row: row.speedup.value)
    speed = best.speedup
    text = (
        f"No gain on this {device} at batch {batch}: the fastest setting, {best.name}, has "
        f"{speed.value:.2f}x ({speed.low:.2f} to {speed.high:.2f}) the speed of {best.baseline}"
    )
    if speed.high - speed.low > NOISE * speed.value:
        return f"{text}, too uncertain to tell; repeat on a quieter machine or with more --rounds."
    if best.ideal < GAIN + 0.05:
        return (
            f"{text}, and its operations allow no more than {best.ideal:.2f}x; try {_more(best)}."
        )
    text = f"{text}, although its operations allow {best.ideal:.2f}x"
    if batch < 8:
        return f"{text}; try a larger --batch."
    return f"{text}; the model is too small here for merging to pay, so leave it as it is."
