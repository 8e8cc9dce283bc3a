"""Consistency and intervals against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from turbovlm.errors import InputError
from turbovlm_workbench.metrics import intervals
from turbovlm_workbench.metrics.intervals import interval
from turbovlm_workbench.metrics.pairs import consistency


def test_a_group_is_right_if_all_its_examples_are() -> None:
    right = [True, True, False, True, True, False]
    assert consistency(right, ["a", "b", "a", "c", "b", "d"]) == 2 / 4
    with pytest.raises(InputError, match="6 results for 1 groups"):
        consistency(right, ["a"])
    with pytest.raises(InputError, match="0 results for 0 groups"):
        consistency([], [])


def test_interval_of_right_and_wrong_answers() -> None:
    # 400 answers, 30 % right: the mean's standard error is sqrt(0.3 * 0.7 / 400)
    values = [1.0] * 120 + [0.0] * 280
    mean, low, high = interval(values)
    error = math.sqrt(0.3 * 0.7 / 400)
    assert mean == pytest.approx(0.3)
    assert low == pytest.approx(0.3 - 1.96 * error, abs=0.004)
    assert high == pytest.approx(0.3 + 1.96 * error, abs=0.004)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist()
    assert interval(values) == interval(values)
    assert interval(values) != interval(values, seed=1)


def test_interval_of_many_different_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_DRAWS", 100_000)  # 400 samples at a time, and 200 in the end
    values = [i / 250 for i in range(250)]
    mean, low, high = interval(values, samples=5000)
    error = math.sqrt(1 / 12 / 250)  # evenly spread from 0 to 1
    assert mean == pytest.approx(sum(values) / 250)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.003)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.003)


def test_few_and_many_values_have_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [(0, 0.337, 1)[i % 3] * (i % 7) ** 0.5 for i in range(300)]
    few = interval(values)
    monkeypatch.setattr(intervals, "_FEW", 2)
    assert interval(values) == pytest.approx(few, abs=0.004)
    assert interval(values) != few  # so they were drawn in two ways


def test_interval_without_variation_and_without_values() -> None:
    assert interval([0.25]) == (0.25, 0.25, 0.25)
    assert interval([2, 2, 2]) == (2, 2, 2)
    for values in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(InputError, match="one value or more, all finite"):
            interval(values)
