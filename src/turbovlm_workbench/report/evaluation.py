"""A finished evaluation as a table, and the images that could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.settings import from_plain

NAMED = 10


def heading(done: Mapping[str, Any]) -> str:
    """Task, model, setting and number of examples in one line."""
    setting = " and ".join(map(repr, from_plain(done["merge"]))) or "unmerged"
    draws = "" if done["draws"] == 1 else f", mean of {done['draws']} draws"
    return f"{done['task']} of {done['model']}, {setting}, {done['examples']} examples{draws}"


def evaluation_table(
    measures: Sequence[Measure],
    done: Mapping[str, Any],
    gaps: Mapping[str, Sequence[float]] | None = None,
) -> Table:
    """One row for each metric: value, interval, and the difference to another run.

    Args:
        measures: of the task, in order; those that the run has are shown.
        done: what `turbovlm_workbench.run.runner.run_task` returned.
        gaps: of `turbovlm_workbench.run.result.difference`.
    """
    shown = Table(
        "metric",
        "value",
        "95 % interval",
        *(() if gaps is None else ("difference [95 %]",)),
        box=None,
    )
    for measure in (m for m in measures if m.key in done["metrics"]):
        ends = done["intervals"].get(measure.key)
        row = [measure.title, measure.text(done["metrics"][measure.key]), _range(measure, ends)]
        if gaps is not None:
            row.append(_gap(measure, gaps.get(measure.key)))
        shown.add_row(*row)
    return shown


def broken(done: Mapping[str, Any]) -> list[str]:
    """How many images could not be read, and the first of them; nothing if all could."""
    bad = done["broken"]
    if not bad:
        return []
    lines = [f"{len(bad)} of {done['examples']} examples left out, their images cannot be read:"]
    lines += [f"  {name}: {why}" for name, why in list(bad.items())[:NAMED]]
    if len(bad) > NAMED:
        lines.append(f"  and {len(bad) - NAMED} more: see result.json")
    return ["\n".join(lines)]


def _range(measure: Measure, ends: Sequence[float] | None, *, signed: bool = False) -> str:
    if ends is None:
        return ""
    write = _signed if signed else Measure.text
    low, high = (write(measure, end) for end in ends)
    return f"[{low}, {high}]"


def _gap(measure: Measure, gap: Sequence[float] | None) -> str:
    if gap is None:
        return ""
    return f"{_signed(measure, gap[0])} {_range(measure, gap[1:], signed=True)}"


def _signed(measure: Measure, value: float) -> str:
    return ("+" if value >= 0 else "") + measure.text(value)
