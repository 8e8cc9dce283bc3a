"""What a run of an evaluation said beside a base, example by example, with what changed marked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turbovlm.errors import InputError
from turbovlm_workbench.compare.titles import title_of
from turbovlm_workbench.data.predictions import BASIS, READ, Record, Records, read_settings
from turbovlm_workbench.load.loaded import UNMERGED
from turbovlm_workbench.report.marked import marked_words
from turbovlm_workbench.report.sections import Section, Shown
from turbovlm_workbench.run.result import SCORES, difference
from turbovlm_workbench.settings import from_plain
from turbovlm_workbench.tasks.scored import PREDICTIONS

NUMBER = 8
"""Outputs that a section shows."""

Run = tuple[Path, Mapping[str, Any]]
"""The file of a result, and what is in it."""


def with_outputs(
    section: Section, path: Path, data: Mapping[str, Any], runs: Sequence[Run]
) -> Section:
    """The section of an evaluation with outputs that differ from those of its base.

    The base is the unmerged run of the same model on the same data; where the run compares both
    itself (agreement), it is its own. A result away from its predictions, or without a base, stays
    as it is.

    Args:
        section: of the result alone.
        path: the run's ``result.json``.
        data: what is in it.
        runs: the evaluations that are reported beside it.

    Raises:
        InputError: for predictions or scores that cannot be read.
    """
    folder = _folder(path, data)
    if folder is None:
        return section
    records = _records(folder, data)
    if records and all("merged" in record for record in records.values()):
        pairs = {key: (r[UNMERGED], r["merged"]) for key, r in records.items()}
        return _shown(section, pairs, title_of(from_plain(data["merge"])), "the unmerged model")
    base = next((run for run in runs if _is_base(run, path, data)), None)
    other = None if base is None else _folder(*base)
    if base is None or other is None:
        return section
    before = {key: said(record) for key, record in _records(other, base[1]).items()}
    after = {key: said(record) for key, record in records.items()}
    pairs = {
        key: (was, now)
        for key, now in after.items()
        if now is not None and (was := before.get(key)) is not None
    }
    section = _with_difference(section, data, difference(folder / SCORES, other / SCORES))
    name = title_of(from_plain(data["merge"]))
    return _shown(section, pairs, name, str(other)) if pairs else section


def said(record: Record) -> str | None:
    """A prediction in words: a text, a class, true or false; None where it is none of these."""
    for key, value in record.items():
        if key in (READ, BASIS, "error"):
            continue
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value and isinstance(value[0], int):
            return f"class {value[0]}"
        return None
    return None


def _is_base(run: Run, path: Path, data: Mapping[str, Any]) -> bool:
    """Whether ``run`` is the unmerged one of the same model on the same data."""
    other, here = run[1].get("settings", {}), data["settings"]
    same = all(other.get(key) == here.get(key) for key in ("task", "model", "data"))
    return same and run[0] != path and not run[1]["merge"] and bool(data["merge"])


def _folder(path: Path, data: Mapping[str, Any]) -> Path | None:
    """Where the run's predictions are; None where the result has been taken away from them."""
    if "settings" not in data:
        return None
    try:
        settings = read_settings(path.parent)
    except InputError:
        return None
    return path.parent if settings == data["settings"] else None


def _records(folder: Path, data: Mapping[str, Any]) -> dict[str, Record]:
    """The predictions by id, of the first draw where there are several; broken images are left
    out."""
    place = folder if data.get("draws", 1) == 1 else folder / "draw1"
    found = ((record.pop("id"), record) for record in Records(place, PREDICTIONS).every())
    return {key: record for key, record in found if "error" not in record}


def _shown(section: Section, pairs: Mapping[str, tuple[str, str]], name: str, base: str) -> Section:
    changed = [key for key, (before, after) in pairs.items() if before != after]
    note = f"{len(changed)} of {len(pairs)} outputs differ from those of {base}"
    if changed:
        number = min(NUMBER, len(changed))
        note += f"; shown are the first {number} of them, what changed is underlined"
    pictures = [
        Shown(
            key,
            "",
            {UNMERGED: marked_words(before, before), name: marked_words(before, after)},
        )
        for key in changed[:NUMBER]
        for before, after in [pairs[key]]
    ]
    return dataclasses.replace(section, pictures=pictures, notes=[f"{note}.", *section.notes])


def _with_difference(
    section: Section, data: Mapping[str, Any], gaps: Mapping[str, Sequence[float]]
) -> Section:
    """A column with the paired difference of every metric that is a mean."""
    (grid,) = section.grids
    rows = []
    for key, row in zip(data["metrics"], grid.rows, strict=True):
        gap = gaps.get(key)
        told = "" if gap is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*gap)
        rows.append([*row, told])
    heads = [*grid.headers, "difference to unmerged [95 %]"]
    return dataclasses.replace(section, grids=[dataclasses.replace(grid, headers=heads, rows=rows)])
