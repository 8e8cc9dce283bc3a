"""Find the towers of a model and their blocks, by the rows; nothing is changed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from turbovlm.errors import NothingToPatch, UnknownArchitecture
from turbovlm.plug.row import Row, is_named


@dataclass(frozen=True)
class Tower:
    """An encoder inside a model: its dotted name there, and its blocks in order."""

    name: str
    module: nn.Module
    row: Row
    blocks: tuple[nn.Module, ...]


def find_towers(model: nn.Module, rows: Sequence[Row]) -> tuple[Tower, ...]:
    """All towers of ``model`` that a row describes.

    Raises:
        UnknownArchitecture: if no row knows any part of the model.
        NothingToPatch: if a tower is known but holds no block of its row.
    """
    towers: list[Tower] = []
    claimed: set[int] = set()
    barren: list[str] = []
    for name, module in model.named_modules():
        matching = [row for row in rows if is_named(module, row.towers)]
        if not matching or id(module) in claimed:
            continue
        for row in matching:
            blocks = tuple(m for m in module.modules() if is_named(m, (row.block,)))
            if blocks:
                claimed |= {id(m) for m in module.modules()}
                towers.append(Tower(name, module, row, blocks))
                break
        else:
            barren.append(f"{name or 'the model'} ({type(module).__name__})")
    if towers:
        return tuple(towers)
    if barren:
        raise NothingToPatch(
            f"{', '.join(barren)} is a known encoder, but none of its blocks is of a kind that can "
            f"be split in two branches: its blocks are {_block_names(model)}; such blocks need a "
            "row of their own: turbovlm.register(Row(...)), see CONTRIBUTING.md"
        )
    raise UnknownArchitecture(
        f"no row describes {type(model).__name__}; known encoders are "
        f"{', '.join(sorted({t.rsplit('.', 1)[1] for row in rows for t in row.towers}))}; "
        "add yours with turbovlm.register(Row(...)), see CONTRIBUTING.md"
    )


def _block_names(model: nn.Module) -> str:
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m)]
    names = {type(child).__name__ for stack in stacks for child in stack}
    return ", ".join(sorted(names)) or "not in a list"
