"""Find the towers of a model and their blocks, by the rows; nothing is changed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from turbovlm.errors import NothingToPatch, UnknownArchitecture, UnsuitableBlock
from turbovlm.plug.row import Refusal, Row, is_named


@dataclass(frozen=True)
class Tower:
    """An encoder inside a model: its dotted name there, and its blocks in order."""

    name: str
    module: nn.Module
    row: Row
    blocks: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Found:
    """What the rows know of a model.

    Attributes:
        towers: encoders with blocks of a row.
        reasons: why other known parts cannot be patched, a sentence each.
        barren: known towers without a block of any row.
    """

    towers: tuple[Tower, ...]
    reasons: tuple[str, ...]
    barren: tuple[str, ...]

    @property
    def patched(self) -> tuple[Tower, ...]:
        """Those that `apply` patches: text towers only where there are no others."""
        return tuple(t for t in self.towers if t.row.modality != "text") or self.towers


def survey(model: nn.Module, rows: Sequence[Row], refusals: Sequence[Refusal] = ()) -> Found:
    """Look for everything that the rows and refusals describe; what is refused hides its parts."""
    towers: list[Tower] = []
    reasons: dict[str, None] = {}  # in order, each once
    barren: list[str] = []
    claimed: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in claimed:
            continue
        title = f"{name or 'the model'} ({type(module).__name__})"
        matching = [row for row in rows if is_named(module, row.towers)]
        refusal = next((r for r in refusals if is_named(module, r.names)), None)
        if refusal is not None and not matching:  # a row of the user's own overrides
            reasons[f"{type(module).__name__} cannot be patched: {refusal.reason}"] = None
            claimed |= {id(m) for m in module.modules()}
            continue
        if any(row.is_causal(module) for row in matching):
            reasons[f"{title} cannot be patched: it is configured as a causal decoder"] = None
            continue
        for row in matching:
            blocks = tuple(m for m in module.modules() if is_named(m, (row.block,)))
            if blocks:
                claimed |= {id(m) for m in module.modules()}
                towers.append(Tower(name, module, row, blocks))
                break
        else:
            barren += [title] if matching else []
    return Found(tuple(towers), tuple(reasons), tuple(barren))


def find_towers(
    model: nn.Module, rows: Sequence[Row], refusals: Sequence[Refusal] = ()
) -> tuple[Tower, ...]:
    """The towers of ``model`` that `apply` patches.

    Raises:
        UnsuitableBlock: if all that is known of the model cannot be patched, with the reason.
        NothingToPatch: if a tower is known but holds no block of its row.
        UnknownArchitecture: if no row knows any part of the model.
    """
    found = survey(model, rows, refusals)
    if found.patched:
        return found.patched
    if found.reasons:
        raise UnsuitableBlock("; ".join(found.reasons))
    if found.barren:
        raise NothingToPatch(
            f"{', '.join(found.barren)} is a known encoder, but none of its blocks is of a kind "
            f"that can be split in two branches: its blocks are {_block_names(model)}; such "
            "blocks need a row of their own: turbovlm.register(Row(...)), see CONTRIBUTING.md"
        )
    raise UnknownArchitecture(
        f"no row describes {type(model).__name__} (its blocks are {_block_names(model)}); "
        "`turbovlm models` lists what is known, and turbovlm.register(Row(...)) adds yours: "
        "see CONTRIBUTING.md"
    )


def _block_names(model: nn.Module) -> str:
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m)]
    names = {type(child).__name__ for stack in stacks for child in stack}
    return ", ".join(sorted(names)) or "not in a list"
