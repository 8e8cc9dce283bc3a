"""What `turbovlm.Merge` changes in a model: the swaps of its towers and blocks, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from turbovlm.config import Merge
from turbovlm.errors import ConfigError
from turbovlm.maths.schedule import check_depth
from turbovlm.maths.speedup import BlockCost
from turbovlm.plug.encoder.block import BlockSite, TurboBlock
from turbovlm.plug.encoder.find import Tower, find_towers
from turbovlm.plug.encoder.mute import muted_branches
from turbovlm.plug.encoder.packed import PackedBlock, PackedTower
from turbovlm.plug.encoder.row import Refusal, Row
from turbovlm.plug.encoder.selfcheck import attention_extras, check_block
from turbovlm.plug.encoder.state import EncoderPatch, TowerFacts
from turbovlm.plug.encoder.tower import TowerSite, TurboTower
from turbovlm.plug.names import attribute
from turbovlm.plug.swap import Swap, parameters_of, plain_class
from turbovlm.plug.twin import device_of, probe, twin_of


def merge_swaps(
    model: nn.Module, config: Merge, rows: Sequence[Row], refusals: Sequence[Refusal] = ()
) -> list[Swap]:
    """The swaps that patch every tower of ``model`` that a row describes; nothing is changed.

    A model that has a method ``check_merge(config)`` may refuse a setting (MiniGPT-v2 joins four
    tokens, and what is left must divide).

    Raises:
        ConfigError, UnknownArchitecture, NothingToPatch, UnsuitableBlock, UnseenAttention: see
        `turbovlm.errors`.
    """
    towers = find_towers(model, rows, refusals)
    for tower in towers:
        if config.speedup is None:
            check_depth(config.schedule, len(tower.blocks))
        if config.collapse:
            _check_collapse(tower)
        if config.preset is not None and tower.row.packed is not None:
            raise ConfigError(
                "the paper's preset (Merge.paper) knows no packed sequence of images, as "
                f"{type(tower.module).__name__} has it: use Merge"
            )
    for module in model.modules():
        if hasattr(type(module), "check_merge"):
            cast(Any, module).check_merge(config)
    return [swap for tower in towers for swap in _swaps(tower, config)]


def rehearse(tower: Tower, config: Merge) -> None:
    """The self-check of `merge_swaps`, for one tower on any device, the meta device too.

    Raises:
        UnsuitableBlock, UnseenAttention: as `turbovlm.apply` would.
    """
    _check(tower, _patch_of(tower, config))


def _check_collapse(tower: Tower) -> None:
    row, title = tower.row, type(tower.module).__name__
    if row.guide_of(tower.module) != "cls" or not row.prefix_of(tower.module):
        raise ConfigError(
            f"collapse keeps the cls token alone and {title} has none: leave collapse out"
        )
    if tower.reads not in ("cls", "pooled"):
        raise ConfigError(
            f"collapse leaves one patch token, and what reads {title} is not known to read cls "
            "alone: leave collapse out"
        )


def _patch_of(tower: Tower, config: Merge) -> EncoderPatch:
    row, first = tower.row, tower.blocks[0]
    prefix = row.prefix_of(tower.module)
    facts = TowerFacts(
        depth=len(tower.blocks),
        prefix=prefix,
        guide=row.guide_of(tower.module),
        last=tower.reads in ("all", "pooled"),
        around=tower.around,
        cost=_cost(tower),
    )
    muted = muted_branches(row, first, attention_extras(first, row, prefix))
    return EncoderPatch(row, config, facts, muted)


def _swaps(tower: Tower, config: Merge) -> list[Swap]:
    patch = _patch_of(tower, config)
    _check(tower, patch)
    places: dict[int, list[int]] = {}
    for layer, block in enumerate(tower.blocks):
        places.setdefault(id(block), []).append(layer)
    host = plain_class(tower.module)
    entries = tuple(n for n in ("forward", *tower.row.entries) if hasattr(host, n))
    names = {name: parameters_of(getattr(host, name)) for name in entries}
    outer, inner = (TurboTower, TurboBlock)
    if tower.row.packed is not None:
        outer, inner = PackedTower, PackedBlock
    swaps = [Swap(tower.module, outer, TowerSite(patch, host, names), entries)]
    for block in {id(b): b for b in tower.blocks}.values():
        kind = plain_class(block)
        site = BlockSite(patch, tuple(places[id(block)]), kind, parameters_of(kind.forward))
        swaps.append(Swap(block, inner, site))
    return swaps


def _check(tower: Tower, patch: EncoderPatch) -> None:
    """The self-check on one block of each class."""
    for block in {plain_class(b): b for b in reversed(tower.blocks)}.values():
        check_block(block, patch)


def _cost(tower: Tower) -> BlockCost:
    """What a block costs, from the shapes of its weights."""
    block, row = tower.blocks[0], tower.row

    def weights(names: tuple[str, ...]) -> int:
        children = (getattr(block, name, None) for name in names)
        return sum(
            p.numel() for c in children if c is not None for p in c.parameters() if p.dim() == 2
        )

    twin = twin_of(block, plain_class(block), device_of(block))
    x = probe(twin, 1)
    device = device_of(block)
    width = 0 if x is None else x.shape[-1]
    if row.packed is not None and row.packed.whole is not None:
        # attention within windows is next to nothing beside that within whole images
        width = width * len(attribute(tower.module, row.packed.whole)) // len(tower.blocks)
    return BlockCost(
        weights(row.attention),
        weights(row.mlp),
        width,
        few=device.type in ("cuda", "hip"),
        attended=tower.reads == "tokens",
    )
