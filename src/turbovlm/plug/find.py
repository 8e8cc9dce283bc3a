"""Find the towers of a model and their blocks, by the rows; nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def find_towers(
    model: nn.Module, rows: Sequence[Row], refusals: Sequence[Refusal] = ()
) -> tuple[Tower, ...]:
    """All towers of ``model`` that a row describes; text towers only where there are no others.

    Raises:
        UnsuitableBlock: if all that is known of the model cannot be patched, with the reason.
        NothingToPatch: if a tower is known but holds no block of its row.
        UnknownArchitecture: if no row knows any part of the model.
    """
    towers: list[Tower] = []
    claimed: set[int] = set()
    barren: list[str] = []
    decoders: list[str] = []
    for name, module in model.named_modules():
        matching = [row for row in rows if is_named(module, row.towers)]
        if not matching or id(module) in claimed:
            continue
        title = f"{name or 'the model'} ({type(module).__name__})"
        if any(row.is_causal(module) for row in matching):
            decoders.append(f"{title} cannot be patched: it is configured as a causal decoder")
            continue
        for row in matching:
            blocks = tuple(m for m in module.modules() if is_named(m, (row.block,)))
            if blocks:
                claimed |= {id(m) for m in module.modules()}
                towers.append(Tower(name, module, row, blocks))
                break
        else:
            barren.append(title)
    if towers:
        seeing = tuple(t for t in towers if t.row.modality != "text")
        return seeing or tuple(towers)
    if reasons := refused(model, refusals) + decoders:
        raise UnsuitableBlock("; ".join(reasons))
    if barren:
        raise NothingToPatch(
            f"{', '.join(barren)} is a known encoder, but none of its blocks is of a kind that can "
            f"be split in two branches: its blocks are {_block_names(model)}; such blocks need a "
            "row of their own: turbovlm.register(Row(...)), see CONTRIBUTING.md"
        )
    raise UnknownArchitecture(
        f"no row describes {type(model).__name__} (its blocks are {_block_names(model)}); "
        "`turbovlm models` lists what is known, and turbovlm.register(Row(...)) adds yours: "
        "see CONTRIBUTING.md"
    )


def refused(model: nn.Module, refusals: Iterable[Refusal]) -> list[str]:
    """Why parts of ``model`` cannot be patched, one sentence for each refusal that applies."""
    sentences = []
    for refusal in refusals:
        part = next((m for m in model.modules() if is_named(m, (refusal.name,))), None)
        if part is not None:
            sentences.append(f"{type(part).__name__} cannot be patched: {refusal.reason}")
    return sentences


def _block_names(model: nn.Module) -> str:
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m)]
    names = {type(child).__name__ for stack in stacks for child in stack}
    return ", ".join(sorted(names)) or "not in a list"
