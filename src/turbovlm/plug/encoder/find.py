"""Find the towers of a model, their blocks and their readers, by the rows; nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from turbovlm.errors import NothingToPatch, UnknownArchitecture, UnsuitableBlock
from turbovlm.plug.encoder.row import Reads, Refusal, Row
from turbovlm.plug.names import is_named

_READS = "turbovlm_reads"


@dataclass(frozen=True)
class Tower:
    """An encoder inside a model.

    Attributes:
        name: its dotted name there.
        module: the encoder.
        row: what is known of it.
        blocks: in order.
        reads: what the nearest known reader around it makes of its output; its own forward
            where none is known.
        around: whether a reader around it is known.
    """

    name: str
    module: nn.Module
    row: Row
    blocks: tuple[nn.Module, ...]
    reads: Reads
    around: bool = False


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
        """Those that `apply` patches.

        Text towers only where there are no others, and nothing else is refused: merging words
        in the place of the pixels is not what was asked for.
        """
        seeing = tuple(t for t in self.towers if t.row.modality != "text")
        return seeing or (() if self.reasons or self.barren else self.towers)


def survey(model: nn.Module, rows: Sequence[Row], refusals: Sequence[Refusal] = ()) -> Found:
    """Look for everything that the rows and refusals describe; what is refused hides its parts."""
    towers: list[Tower] = []
    reasons: dict[str, None] = {}  # in order, each once
    barren: list[str] = []
    claimed: set[int] = set()
    modules = dict(model.named_modules())
    for name, module in modules.items():
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
            blocks = _blocks(module, row)
            if blocks:
                claimed |= {id(m) for m in module.modules()}
                reads, around = _reads(modules, name, row)
                towers.append(Tower(name, module, row, blocks, reads, around))
                break
        else:
            barren += [title] if matching else []
    if towers and all(tower.row.modality == "text" for tower in towers):
        reasons |= dict.fromkeys(_unknown(module) for module in modules.values() if _senses(module))
    return Found(tuple(towers), tuple(reasons), tuple(barren))


def _senses(module: nn.Module) -> tuple[str, ...]:
    """What a model of transformers says that it takes beside text."""
    said = getattr(type(module), "input_modalities", ())
    return tuple(m for m in ((said,) if isinstance(said, str) else said) if m != "text")


def _unknown(module: nn.Module) -> str:
    return (
        f"{type(module).__name__} takes {' and '.join(_senses(module))} input, and no row "
        "describes its encoder of it"
    )


def _blocks(tower: nn.Module, row: Row) -> tuple[nn.Module, ...]:
    """The blocks in the order in which they stand; one that a list holds twice comes twice."""
    found: list[nn.Module] = []
    for container in tower.modules():
        children = [m for m in container._modules.values() if m and is_named(m, (row.block,))]
        if children and children[0] not in found:
            found += children
    return tuple(found)


def _reads(modules: dict[str, nn.Module], name: str, row: Row) -> tuple[Reads, bool]:
    """What the nearest module around the tower that says so reads of it, and whether one does."""
    path = name.split(".") if name else []
    for depth in range(len(path) - 1, -1, -1):
        around = modules[".".join(path[:depth])]
        for cls in type(around).__mro__:
            found = row.readers.get(f"{cls.__module__}.{cls.__qualname__}")
            if found is not None:
                return found, True
        if hasattr(around, _READS):
            return getattr(around, _READS), True
    return row.own_reads(modules[name]), False


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
    text = ", ".join(f"{t.name} ({type(t.module).__name__})" for t in found.towers)
    beside = f"; its text encoder, {text}, merges words when it is given to apply itself"
    if found.reasons:
        raise UnsuitableBlock("; ".join(found.reasons) + (beside if text else ""))
    if found.barren:
        raise NothingToPatch(
            f"{', '.join(found.barren)} is a known encoder, but none of its blocks is of a kind "
            f"that can be split in two branches: its blocks are {_block_names(model)}; such "
            "blocks need a row of their own: turbovlm.register(Row(...)), see CONTRIBUTING.md"
            + (beside if text else "")
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
