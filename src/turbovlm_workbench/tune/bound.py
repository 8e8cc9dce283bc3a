"""How large a mean loss may really be, from the losses of some images of which few lose much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance

Z = 1.6448536269514722  # of a normal distribution: one-sided, 95 %


def upper_bound(losses: Sequence[float]) -> float:
    """What the true mean is below with about 95 % confidence.

    Losses are sparse: of a hundred images three may change their class. The mean plus so many
    standard errors is then too low in far more than one case of twenty, as both are small
    where the rare image happens to be missing. So the bound is the quantile of a gamma
    distribution, after Fay and Feuer (Statistics in Medicine, 1997) for weighted sums of rare
    events: the largest loss seen is taken to come once more. Gains (negative losses) take a bound
    of their own, and the two are joined as those of a difference are (Zou and Donner, 2008). It
    is never less than the mean plus those standard errors.

    Args:
        losses: of at least two images, each in [-1, 1].
    """
    lost = [max(loss, 0.0) for loss in losses]
    gained = [max(-loss, 0.0) for loss in losses]
    over = _gamma_bound(lost) - fmean(lost)
    under = min(Z * _error(gained), fmean(gained))
    return fmean(losses) + max(math.hypot(over, under), Z * _error(losses))


def _error(values: Sequence[float]) -> float:
    return math.sqrt(variance(values) / len(values))


def _gamma_bound(losses: Sequence[float]) -> float:
    again = max(losses) / len(losses)
    mean = fmean(losses) + again
    spread = _error(losses) ** 2 + again**2
    if not mean:
        return 0.0
    freedom = 2 * mean**2 / spread
    return mean * _chi_square(freedom) / freedom


def _chi_square(freedom: float) -> float:
    """The 95 % quantile, by Wilson and Hilferty: within 1 % from 3 degrees of freedom on."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + Z * math.sqrt(part)) ** 3
