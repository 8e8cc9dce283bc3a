"""Host tables: which block classes can be patched, a declarative row each, a file per library."""

from __future__ import annotations

from turbovlm.hosts import (
    diffusers,
    open_clip,
    packed,
    refusals,
    text,
    timm,
    torchvision,
    transformers,
)
from turbovlm.plug.denoiser.row import Denoiser
from turbovlm.plug.encoder.row import Row

REFUSALS = refusals.REFUSALS
_registered: list[Row] = []
_denoisers: list[Denoiser] = []


def rows() -> tuple[Row, ...]:
    """All rows of encoders: your own first, so that they can override."""
    built_in = (transformers, packed, timm, torchvision, open_clip, text)
    return (*_registered, *(row for table in built_in for row in table.ROWS))


def denoisers() -> tuple[Denoiser, ...]:
    """All rows of denoisers: your own first."""
    return (*_denoisers, *diffusers.DENOISERS)


def register(row: Row | Denoiser) -> None:
    """Add an architecture: one row. `turbovlm.apply` proves an encoder's with the self-check."""
    if isinstance(row, Denoiser):
        _denoisers.insert(0, row)
    else:
        _registered.insert(0, row)
