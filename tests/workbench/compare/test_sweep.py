from __future__ import annotations

import dataclasses
import json

from tests.workbench.report.make import report
from turbovlm.config import Merge
from turbovlm_workbench.compare.rows import BenchReport, BenchRow
from turbovlm_workbench.compare.sweep import Sweep, front


def rows(*points: tuple[float, float]) -> list[BenchRow]:
    """Rows named a, b, c, ... with these throughputs and losses."""
    some = report().rows[1]
    return [
        dataclasses.replace(
            some, name="abcdefgh"[i], throughput=speed, quality={**some.quality, "loss": loss}
        )
        for i, (speed, loss) in enumerate(points)
    ]


def names(found: list[BenchRow]) -> str:
    return "".join(row.name for row in found)


def test_the_front_by_hand() -> None:
    # a is slow and exact, b faster for a little, c beaten by b in both, d the fastest,
    # e as fast as b but worse, f as good as a but slower
    points = [(100, 0.0), (120, 0.01), (110, 0.02), (150, 0.05), (120, 0.03), (90, 0.0)]
    assert names(front(rows(*points))) == "dba"


def test_equal_rows_do_not_beat_each_other() -> None:
    assert names(front(rows((100, 0.01), (100, 0.01)))) == "ab"


def test_a_gain_against_the_truth_beats_the_unmerged_model() -> None:
    assert names(front(rows((100, 0.0), (110, -0.01)))) == "b"


def test_one_row_is_the_front() -> None:
    assert names(front(rows((100, 0.3)))) == "a"


def test_a_sweep_is_a_bench_with_its_front() -> None:
    whole: BenchReport = report()
    sweep = Sweep.of(whole)
    # losses: 0 unmerged, 0 and 0.5 points for turbo, 10 and 20 for random at the same speeds
    assert sweep.front == ("turbo r=8", "turbo r=4")
    assert [row.throughput for row in sweep.rows] == sorted(
        (row.throughput for row in whole.rows), reverse=True
    )
    data = json.loads(json.dumps(sweep.to_dict()))
    assert data["front"] == ["turbo r=8", "turbo r=4"]
    assert data["rows"][1]["settings"] == Merge(r=4).to_dict()
    assert data["loss"]["key"] == "loss"
