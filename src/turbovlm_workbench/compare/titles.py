"""What to call a setting in a table."""

from __future__ import annotations

from collections.abc import Sequence

from turbovlm.config import Merge


def merge_title(merge: Merge) -> str:
    """What to call a setting in a table: its method, and all that differs from the defaults."""
    return " ".join([merge.method, *_told(merge)])


def amount_title(merge: Merge) -> str:
    """How much is merged, e.g. ``"r=8"`` or ``"speedup=1.4"``."""
    return _told(merge)[0]


def blocks_title(rs: Sequence[int]) -> str:
    """The r of those blocks that merge, counted from 1: ``"16@2+7@4"``; ``"0"`` if none does."""
    return "+".join(f"{amount}@{block}" for block, amount in enumerate(rs, 1) if amount) or "0"


def _told(merge: Merge) -> list[str]:
    """``name=value``, the amount first."""
    fields = merge.to_dict()
    r = fields.pop("r", None)
    if r is not None:
        fields = {"r": blocks_title(r) if isinstance(r, list) else r, **fields}
    return [f"{k}={v}" for k, v in fields.items() if k not in ("kind", "method")]
