"""Host tables: which block classes can be patched, a declarative row each, a file per library."""

from __future__ import annotations

from turbovlm.hosts import open_clip, refusals, text, timm, torchvision, transformers
from turbovlm.plug.row import Row

REFUSALS = refusals.REFUSALS
_registered: list[Row] = []


def rows() -> tuple[Row, ...]:
    """All rows: your own first, so that they can override."""
    built_in = (transformers, timm, torchvision, open_clip, text)
    return (*_registered, *(row for table in built_in for row in table.ROWS))


def register(row: Row) -> None:
    """Add an architecture: one row. `turbovlm.apply` then proves it with the self-check."""
    _registered.insert(0, row)
