"""Put a setting into the encoders of a model, in place, and take it out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from torch import nn

from turbovlm.config import Merge
from turbovlm.errors import ConfigError
from turbovlm.maths.schedule import check_depth
from turbovlm.plug.block import Site, TurboBlock
from turbovlm.plug.find import Tower, find_towers
from turbovlm.plug.row import Refusal, Row
from turbovlm.plug.selfcheck import attention_extras, check_block, noisy_copy
from turbovlm.plug.state import Patch
from turbovlm.plug.swap import install, parameters_of, uninstall

CONFIG_ATTRIBUTE = "turbovlm"


def apply_rows(
    model: nn.Module, config: Merge, rows: Sequence[Row], refusals: Sequence[Refusal] = ()
) -> None:
    """Patch every tower of ``model`` that a row describes; on any error the model is as it was.

    A model that has a method ``check_merge(config)`` may refuse a setting (MiniGPT-v2 joins four
    tokens, and what is left must divide).

    Raises:
        ConfigError, UnknownArchitecture, NothingToPatch, UnsuitableBlock, UnseenAttention: see
        `turbovlm.errors`.
    """
    towers = find_towers(model, rows, refusals)
    for tower in towers:
        check_depth(config, len(tower.blocks))
        if config.collapse:
            _check_collapse(model, tower)
    for module in model.modules():
        if hasattr(type(module), "check_merge"):
            cast(Any, module).check_merge(config)
    done: list[nn.Module] = []
    try:
        for tower in towers:
            _patch(tower, config, restored_after(model, tower), done)
    except BaseException:
        for block in done:
            uninstall(block)
        raise
    if hasattr(model, "config"):
        setattr(model.config, CONFIG_ATTRIBUTE, config.to_dict())


def remove_rows(model: nn.Module) -> None:
    """Take the blocks' swap and the stored setting out of ``model`` again."""
    for block in [m for m in model.modules() if isinstance(m, TurboBlock)]:
        uninstall(block)
    for module in model.modules():  # a tower may have been patched on its own
        if hasattr(getattr(module, "config", None), CONFIG_ATTRIBUTE):
            delattr(module.config, CONFIG_ATTRIBUTE)


def patches_of(model: nn.Module) -> tuple[Patch, ...]:
    """The patches inside ``model``, one per patched tower, in order."""
    sites = [m.turbo_site for m in model.modules() if isinstance(m, TurboBlock)]
    return tuple(site.patch for site in sites if site.layer == 0)


def stored_config(model: Any) -> Merge:
    """The setting that ``save_pretrained`` stored with the model.

    Raises:
        ConfigError: if there is none.
    """
    stored = getattr(getattr(model, "config", None), CONFIG_ATTRIBUTE, None)
    if stored is None:
        raise ConfigError("no setting is stored with this model: give one, e.g. Merge(r=16)")
    return Merge.from_dict(dict(stored))


def restored_after(model: nn.Module, tower: Tower) -> frozenset[int]:
    """After which blocks (from 0) all positions are needed: the last one, or those a reader names.

    LLaVA and its relatives read ``hidden_states[vision_feature_layer]`` and count its tokens;
    entry 0 is what enters the first block.
    """
    depth = len(tower.blocks)
    restored = {depth - 1} if tower.row.restores(tower.module) else set()
    read = getattr(getattr(model, "config", None), "vision_feature_layer", None)
    if read is not None and tower.row.modality == "image":
        layers = [read] if isinstance(read, int) else read
        restored |= {(depth + i if i < 0 else i - 1) for i in layers}
    return frozenset(layer for layer in restored if 0 <= layer < depth)


def _check_collapse(model: nn.Module, tower: Tower) -> None:
    row, title = tower.row, type(tower.module).__name__
    if row.guide_of(tower.module) != "cls" or not row.prefix_of(tower.module):
        raise ConfigError(
            f"collapse keeps the cls token alone and {title} has none: leave collapse out"
        )
    # a row that always restores does not know its reader: CLIP's embedding takes cls alone
    known = replace(tower, row=replace(row, restore=False))
    if len(tower.blocks) - 1 in restored_after(model, known):
        raise ConfigError(
            f"collapse leaves one patch token, and what reads {title} needs all of them: leave "
            "collapse out"
        )


def rehearse(tower: Tower, config: Merge) -> None:
    """The self-check of `apply` on copies with random weights: for models without any.

    Args:
        tower: of a model on any device, the meta device too; it is not changed.
        config: what would be merged.

    Raises:
        UnsuitableBlock, UnseenAttention: as `apply` would.
    """
    first = {type(block): block for block in reversed(tower.blocks)}
    copies = tuple(noisy_copy(block) for block in first.values())
    _patch(replace(tower, blocks=copies), config, frozenset(), [])


def _patch(tower: Tower, config: Merge, restored: frozenset[int], done: list[nn.Module]) -> None:
    row, prefix = tower.row, tower.row.prefix_of(tower.module)
    patch = Patch(
        row,
        config,
        depth=len(tower.blocks),
        prefix=prefix,
        guide=row.guide_of(tower.module),
        restored=restored,
        extras=attention_extras(tower.blocks[0], row, prefix),
    )
    kinds: set[type[nn.Module]] = set()
    for layer, block in enumerate(tower.blocks):
        host = type(block)
        install(block, TurboBlock, Site(patch, layer, host, parameters_of(host)))
        done.append(block)
        if type(block) not in kinds:
            kinds.add(type(block))
            assert isinstance(block, TurboBlock)
            check_block(block)
