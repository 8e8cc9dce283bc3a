"""How far a mean over images can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from turbovlm.errors import InputError

_DRAWS = 2**22  # at a time, 32 MB
_FEW = 100  # hits are 0 and 1, VQA accuracies 11 values, their differences a few times as many


def interval(
    values: Sequence[float], samples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of one value an image, and its 95 % bootstrap interval over images.

    For the difference of two runs over the same images give the differences, image by image: their
    interval is narrower than the two runs' own intervals suggest, as both see the same images.

    Args:
        values: one finite value an image.
        samples: bootstrap samples, each of as many images drawn with replacement.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        mean, low, high.

    Raises:
        InputError: for no value, or one that is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if not len(data) or not np.isfinite(data).all():
        raise InputError("an interval needs one value or more, all finite: check the scores")
    generator = np.random.default_rng(seed)
    distinct, counts = np.unique(data, return_counts=True)
    if len(distinct) <= _FEW:  # how often each is drawn is multinomial: 1000 times as fast
        drawn = generator.multinomial(len(data), counts / len(data), size=samples)
        means = drawn @ distinct / len(data)
    else:
        rows = max(1, _DRAWS // len(data))
        sizes = [min(rows, samples - start) for start in range(0, samples, rows)]
        draws = (generator.integers(len(data), size=(size, len(data))) for size in sizes)
        means = np.concatenate([data[draw].mean(1) for draw in draws])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(data.mean()), float(low), float(high)
