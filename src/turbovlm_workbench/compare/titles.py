"""What to call settings in a table or a plot."""

from __future__ import annotations

from collections.abc import Sequence

from turbovlm.config import Merge, Setting
from turbovlm_workbench.settings import Settings, keep_of, merge_of


def title_of(settings: Settings) -> str:
    """The method of a merge, and all that differs from the defaults."""
    merge = merge_of(settings)
    words = [] if merge is None else [merge.method]
    return " ".join(words + [word for setting in settings for word in _told(setting)])


def line_of(settings: Settings) -> str | None:
    """What settings share that differ in how much is reduced alone; None for an unmerged model."""
    merge, keep = merge_of(settings), keep_of(settings)
    if merge is None:
        return None if keep is None else "keep"
    return merge.method if keep is None else f"{merge.method}, {_told(keep)[0]}"


def amount_of(settings: Settings) -> str:
    """How much is reduced along a line: ``"r=8"``, ``"speedup=1.4"``, ``"keep=0.25"``."""
    return _told(merge_of(settings) or settings[0])[0] if settings else ""


def blocks_title(rs: Sequence[int]) -> str:
    """The r of those blocks that merge, counted from 1: ``"16@2+7@4"``; ``"0"`` if none does."""
    return "+".join(f"{amount}@{block}" for block, amount in enumerate(rs, 1) if amount) or "0"


def _told(setting: Setting) -> list[str]:
    """``name=value``, the amount first."""
    fields = setting.to_dict()
    r = fields.pop("r", None)
    if r is not None:
        fields = {"r": blocks_title(r) if isinstance(r, list) else r, **fields}
    hidden = ("kind", "method") if isinstance(setting, Merge) else ("kind",)
    return [f"{k}={v}" for k, v in fields.items() if k not in hidden]
