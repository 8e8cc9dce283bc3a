"""Where launches are the cost and not operations, no way to have fewer tokens makes it faster."""

from __future__ import annotations

from collections.abc import Sequence

from turbovlm_workbench.compare.rows import BenchRow, Mode

PAYS = 1.05
"""A limit below this speed-up leaves nothing to gain."""
ASKED = 1.15
"""Settings whose operations allow less than this do not show what costs."""
CURES: dict[Mode, str] = {
    "eager": "--compile, --graph or a larger --batch",
    "compiled": "--graph or a larger --batch",
    "graph": "a larger --batch",
}


def launch_sentence(rows: Sequence[BenchRow], batch: int, mode: Mode) -> str | None:
    """What to do where the limit itself is no gain; None where it is one, or was not measured.

    Args:
        rows: of a bench.
        batch: images per call.
        mode: how the rows were run.
    """
    asked = [row for row in rows if row.limit is not None and row.ideal >= ASKED]
    if not asked:
        return None
    best = max(asked, key=_limit)
    if _limit(best) < PAYS:
        return (
            f"At batch {batch} launches are the cost and not operations: dropping tokens without "
            f"merging any gives {_limit(best):.2f}x where the operations of {best.name} allow "
            f"{best.ideal:.2f}x; use {CURES[mode]}."
        )
    eager = [row.eager.limit.value for row in asked if row.eager and row.eager.limit]
    if eager and max(eager) < PAYS:
        flag = {"compiled": "--compile", "graph": "--graph"}[mode]
        return (
            f"In eager mode launches are the cost at batch {batch}: dropping tokens gives no more "
            f"than {max(eager):.2f}x there, so run the model as {flag} did here."
        )
    return None


def _limit(row: BenchRow) -> float:
    return 0.0 if row.limit is None else row.limit.value
