"""Host tables: which block classes can be patched, a declarative row each, a file per library."""

from __future__ import annotations

from turbovlm.hosts import timm, transformers
from turbovlm.plug.row import Row

_registered: list[Row] = []


def rows() -> tuple[Row, ...]:
    """All rows: your own first, so that they can override."""
    return (*_registered, *transformers.ROWS, *timm.ROWS)


def register(row: Row) -> None:
    """Add an architecture: one row. `turbovlm.apply` then proves it with the self-check."""
    _registered.insert(0, row)
