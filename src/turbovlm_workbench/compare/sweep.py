"""A sweep: the bench over all combinations of settings, and which of them are worth a look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turbovlm.notebook import html_table
from turbovlm_workbench.compare.rows import BenchReport, BenchRow


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        report: the bench of every combination.
        front: names of the rows that no other row beats, the fastest first.
    """

    report: BenchReport
    front: tuple[str, ...]

    @classmethod
    def of(cls, report: BenchReport) -> Sweep:
        """The sweep that a bench of many settings is."""
        return cls(report, tuple(row.name for row in front(report.rows)))

    @property
    def rows(self) -> list[BenchRow]:
        """The rows, the fastest first."""
        return by_speed(self.report.rows)

    def _repr_html_(self) -> str:
        """In a notebook: the table, those on the front with weight."""
        from turbovlm_workbench.report.sweep import sweep_cells, sweep_headers

        strong = [n for n, row in enumerate(self.rows) if row.name in self.front]
        title = f"{self.report.task} of {self.report.model}"
        cells = sweep_cells(self)
        return html_table(title, sweep_headers(self), cells, self.report.advice, strong)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**self.report.to_dict(), "front": list(self.front)}


def front(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The Pareto front of measured throughput and loss, the fastest first.

    A row belongs to it unless another one is at least as fast and loses at most as much, and is
    better in one of the two.
    """
    return [row for row in by_speed(rows) if not any(_beats(other, row) for other in rows)]


def by_speed(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The fastest first; of equally fast rows the one that loses less."""
    return sorted(rows, key=lambda row: (-row.throughput, row.quality["loss"]))


def _beats(one: BenchRow, other: BenchRow) -> bool:
    ours, theirs = ((-row.throughput, row.quality["loss"]) for row in (one, other))
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))
