from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from turbovlm.config import Merge
from turbovlm.measure.speed import Ratio
from turbovlm_workbench.compare.advice import advise, choose
from turbovlm_workbench.compare.rows import BenchRow
from turbovlm_workbench.load.loaded import UNMERGED, Classifier
from turbovlm_workbench.tasks.classification import Classification


def task(labels: tuple[int, ...] | None = None) -> Classification:
    nothing: Any = None
    return Classification(Classifier(nothing, nothing, "model"), labels=labels)


def row(
    r: int | None, speed: float, agreement: float, accuracy: float | None = None, **other: Any
) -> BenchRow:
    config = None if r is None else Merge(r=r, method=other.pop("method", "turbo"))
    quality = {"agreement": agreement, "kl": 0.0}
    return BenchRow(
        name=UNMERGED if config is None else f"{config.method} r={r}",
        settings=() if config is None else (config,),
        fused=False,
        baseline=UNMERGED,
        tokens=100,
        r=None,
        visual=None,
        gflops=1.0,
        ideal=other.pop("ideal", 2.0),
        throughput=10.0,
        spread=0.0,
        speedup=Ratio(speed, *other.pop("interval", (speed - 0.01, speed + 0.01))),
        limit=other.pop("limit", None),
        eager=other.pop("eager", None),
        page_faults=0.0,
        peak_mib=1.0,
        first_token=None,
        quality=quality if accuracy is None else {"accuracy": accuracy, **quality},
    )


BASE = row(None, 1.0, 1.0, 0.80)


def sentence(rows: list[BenchRow], labels: tuple[int, ...] | None = None, batch: int = 32) -> str:
    return advise(task(labels), [BASE, *rows], images=100, batch=batch, device="cpu")


def test_the_fastest_with_a_small_loss() -> None:
    rows = [row(4, 1.1, 0.99), row(8, 1.3, 0.96), row(12, 1.6, 0.94)]
    text = sentence(rows)
    assert text.startswith("Use turbo r=8: 1.30x the speed of unmerged at batch 32 on this cpu")
    assert "agreement 96.0 %" in text
    assert text.endswith("turbovlm.apply(model, turbovlm.Merge(r=8)).")


def test_labels_allow_more_disagreement_but_not_less_accuracy() -> None:
    rows = [row(8, 1.3, 0.94, 0.795), row(12, 1.6, 0.91, 0.789), row(16, 1.9, 0.89, 0.80)]
    text = sentence(rows, labels=(0,))
    assert text.startswith("Use turbo r=8")
    assert "accuracy 79.5 % instead of 80.0 %" in text


def test_equal_speed_is_decided_by_quality() -> None:
    rows = [row(8, 1.30, 0.97), row(8, 1.31, 0.955, method="redundancy")]
    assert choose(task(), [BASE, *rows], 1000) is rows[0]
    # the standard error of 0.015 is 0.027 over 100 images and 0.0085 over 1000
    assert choose(task(), [BASE, *rows[::-1]], 1000) is rows[0]
    assert choose(task(), [BASE, *rows[::-1]], 100) is rows[1], "the first, where chance decides"
    assert choose(task(), [BASE, *rows], 100) is rows[0]


def test_the_code_states_the_method() -> None:
    rows = [row(8, 1.2, 0.96, method="redundancy")]
    assert sentence(rows).endswith("(model, turbovlm.Merge(r=8, method='redundancy')).")


def test_the_code_fuses_where_the_row_is_fused() -> None:
    text = sentence([dataclasses.replace(row(8, 1.2, 0.96), fused=True)])
    assert text.endswith("turbovlm.apply(turbovlm.fuse_attention(model), turbovlm.Merge(r=8)).")


def test_faster_only_with_a_large_loss() -> None:
    text = sentence([row(8, 1.3, 0.90), row(16, 1.9, 0.50)])
    assert text.startswith("No setting is both faster and close")
    assert "turbo r=8, has 1.30x the speed, agreement 90.0 %; try a smaller --r" in text
    assert choose(task(), [BASE, row(8, 1.3, 0.90)], 100) is None


@pytest.mark.parametrize(
    ("merged", "batch", "reason"),
    [
        (row(8, 1.02, 0.99), 32, "the model is too small here for merging to pay"),
        (row(8, 0.90, 0.99), 1, "try a larger --batch"),
        (row(2, 1.02, 0.99, ideal=1.04), 32, "operations allow no more than 1.04x; try a larger"),
        (row(8, 1.20, 0.99, interval=(0.8, 1.6)), 32, "too uncertain to tell"),
    ],
)
def test_no_gain_is_said_with_its_reason(merged: BenchRow, batch: int, reason: str) -> None:
    text = sentence([merged], batch=batch)
    assert text.startswith(f"No gain on this cpu at batch {batch}: the fastest setting, ")
    assert reason in text


def test_a_gain_that_may_be_noise_is_no_gain() -> None:
    assert "No gain" in sentence([row(8, 1.05, 0.99, interval=(0.99, 1.1))])


def test_one_sentence() -> None:
    for rows in ([row(8, 1.3, 0.96)], [row(8, 1.3, 0.5)], [row(8, 0.9, 0.96)], []):
        text = sentence(list(rows))
        assert text.endswith(".")
        assert ". " not in text
        assert "\n" not in text
