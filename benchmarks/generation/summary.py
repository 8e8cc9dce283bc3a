"""From sheets to numbers: means, Fréchet distances, and differences to turbo with intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from methods import Candidate
from scoring import Distance, Sheet, Values

from turbovlm_workbench.metrics.intervals import interval

Interval = tuple[float, float, float]
MEASURES = {
    "right": "attributes right",
    "exact": "prompts fully right",
    "fid_real": "FID to real scenes",
    "fid_unmerged": "FID to unmerged",
    "squared": "squared distance",
    "psnr": "PSNR",
}
HIGHER = ("right", "exact", "psnr")
TIMES = "times"
LEAST = 0.01  # a squared distance that is none: far below one level in every pixel


@dataclass(frozen=True)
class Entry:
    """One line of the results.

    Attributes:
        label: method and setting, or what it is compared with.
        method: one of `METHODS`; empty for real scenes and unmerged pictures.
        ratio: merged; None for those two.
        config: the setting.
        values: by the names of `MEASURES`; what has no meaning for this line is missing.
        over_turbo: how much a value exceeds turbo's at the same ratio: the difference and its
            95 % bootstrap interval over prompts. Under `TIMES`, how many times turbo's the
            squared distance is: the geometric mean over prompts, which no single picture makes.
    """

    label: str
    values: dict[str, float]
    method: str = ""
    ratio: float | None = None
    config: dict[str, Any] = field(default_factory=dict)
    over_turbo: dict[str, Interval] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Numbers:
    """Of one sheet: the values, one value a prompt, and distances of bootstrap samples."""

    values: dict[str, float]
    each: dict[str, Values]
    drawn: dict[str, Values]

    @classmethod
    def of(cls, sheet: Sheet, base: Sheet, distances: dict[str, Distance], samples: int) -> Numbers:
        each = {"right": sheet.right, "exact": sheet.exact, "squared": sheet.squared(base)}
        values = {name: float(value.mean()) for name, value in each.items()}
        values |= {name: distance.to(sheet.features) for name, distance in distances.items()}
        if values["squared"]:
            values["psnr"] = 10 * math.log10(255**2 / values["squared"])
        drawn = {n: d.resampled(sheet.features, samples) for n, d in distances.items()}
        return cls(values, each, drawn)

    def over(self, other: Numbers) -> dict[str, Interval]:
        """Paired differences, measure by measure."""
        found = {n: interval(list(self.each[n] - other.each[n])) for n in self.each}
        times = np.log((self.each["squared"] + LEAST) / (other.each["squared"] + LEAST))
        middle, low, high = (math.exp(x) for x in interval(list(times)))
        found[TIMES] = (middle, low, high)
        for name, drawn in self.drawn.items():
            value = self.values[name] - other.values[name]
            gaps = drawn - other.drawn[name]
            # fewer distinct pictures are further from any reference: samples give the spread alone
            low, high = np.quantile(gaps - gaps.mean(), [0.025, 0.975])
            found[name] = (value, value + float(low), value + float(high))
        return found


def summarise(
    real: Sheet, base: Sheet, sheets: Sequence[tuple[Candidate, Sheet]], samples: int
) -> list[Entry]:
    """Real scenes, unmerged pictures, then the configurations by ratio.

    What every configuration is compared with is turbo in the first setting that was given.
    """
    to_real = Distance(real.features)
    distances = {"fid_real": to_real, "fid_unmerged": Distance(base.features)}
    whole = {"right": float(base.right.mean()), "exact": float(base.exact.mean())}
    entries = [
        Entry(
            "real scenes", {"right": float(real.right.mean()), "exact": float(real.exact.mean())}
        ),
        Entry("unmerged", {**whole, "fid_real": to_real.to(base.features)}),
    ]
    numbers = [Numbers.of(sheet, base, distances, samples) for _, sheet in sheets]
    turbo: dict[Any, Numbers] = {}
    for (candidate, _), own in zip(sheets, numbers, strict=True):
        if candidate.method == "turbo":
            turbo.setdefault(candidate.config.ratio, own)
    for (candidate, _), own in zip(sheets, numbers, strict=True):
        ratio = candidate.config.ratio
        assert isinstance(ratio, int | float)
        other = turbo.get(ratio)
        over = {} if other is None or other is own else own.over(other)
        config = candidate.config.to_dict()
        entries.append(Entry(candidate.label, own.values, candidate.method, ratio, config, over))
    return sorted(entries, key=lambda entry: entry.ratio or 0)
