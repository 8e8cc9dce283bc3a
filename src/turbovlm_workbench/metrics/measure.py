"""What one number of quality is: how it is called, written, read, and made from those of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """One number of quality: how it is called, written, read, and made from those of the images."""

    key: str
    title: str
    about: str
    percent: bool = True
    better: Literal["higher", "lower"] = "higher"
    reduce: Literal["mean", "min"] = "mean"

    def text(self, value: float) -> str:
        """``value`` as the tables print it: a percentage, or four decimals."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4f}"


def summarize(
    measures: Sequence[Measure], scores: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """The scores of all images (at least one) as one number per measure, by its key."""
    reduce = {"mean": fmean, "min": min}
    return {m.key: reduce[m.reduce]([score[m.key] for score in scores]) for m in measures}
