"""apply, remove, applied: put a setting into a model, in place, and take it out again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from turbovlm.config import Merge
from turbovlm.errors import AlreadyApplied, ConfigError, NotApplied, UnknownArchitecture
from turbovlm.maths.schedule import check_depth
from turbovlm.plug.block import TurboBlock
from turbovlm.plug.find import Tower, find_towers
from turbovlm.plug.row import Refusal, Row
from turbovlm.plug.selfcheck import attention_extras, check_block, noisy_copy
from turbovlm.plug.state import Patch
from turbovlm.plug.swap import install, uninstall
from turbovlm.plug.trace import Trace

CONFIG_ATTRIBUTE = "turbovlm"


@dataclass(frozen=True)
class Run:
    """Handle of a recorded application."""

    patches: tuple[Patch, ...]

    @property
    def trace(self) -> Trace:
        """What the last forward merged, in the model's first tower."""
        return self.traces[0]

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The same for every tower.

        Raises:
            NotApplied: if the model has not run since recording began.
        """
        traces = tuple(p.trace for p in self.patches if p.trace is not None)
        if len(traces) < len(self.patches):
            raise NotApplied("nothing is recorded yet: run the model first")
        return traces


def apply_rows(
    model: nn.Module, config: Merge | None, rows: Sequence[Row], refusals: Sequence[Refusal] = ()
) -> None:
    """Patch every tower of ``model`` that a row describes; on any error the model is as it was.

    A model that has a method ``check_merge(config)`` may refuse a setting (MiniGPT-v2 joins four
    tokens, and what is left must divide).

    Raises:
        AlreadyApplied, ConfigError, UnknownArchitecture, NothingToPatch, UnsuitableBlock,
        UnseenAttention: see `turbovlm.errors`.
    """
    if not isinstance(model, nn.Module):
        raise UnknownArchitecture(f"expected a torch model, got {type(model).__name__}")
    if patches_of(model):
        raise AlreadyApplied("this model is patched already: turbovlm.remove(model) first")
    config = stored_config(model) if config is None else config
    if not isinstance(config, Merge):
        raise ConfigError(f"expected turbovlm.Merge(...), got {type(config).__name__}")
    towers = find_towers(model, rows, refusals)
    for tower in towers:
        check_depth(config, len(tower.blocks))
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


def remove(model: nn.Module) -> nn.Module:
    """Take turbovlm out of ``model`` again; it computes bit for bit what it did before.

    Returns:
        The same model.

    Raises:
        NotApplied: if the model is not patched.
    """
    blocks = [m for m in model.modules() if isinstance(m, TurboBlock)]
    if not blocks:
        raise NotApplied("this model is not patched: there is nothing to remove")
    for block in blocks:
        uninstall(block)
    for module in model.modules():  # a tower may have been patched on its own
        if hasattr(getattr(module, "config", None), CONFIG_ATTRIBUTE):
            delattr(module.config, CONFIG_ATTRIBUTE)
    return model


@contextmanager
def recording(model: nn.Module) -> Iterator[Run]:
    """Record what a patched model merges, for as long as the context is open.

    Raises:
        NotApplied: if the model is not patched.
    """
    patches = patches_of(model)
    if not patches:
        raise NotApplied("this model is not patched: turbovlm.apply(model, ...) first")
    for patch in patches:
        patch.recording, patch.trace = True, None
    try:
        yield Run(patches)
    finally:
        for patch in patches:
            patch.recording = False


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
        install(block, patch, layer)
        done.append(block)
        if type(block) not in kinds:
            kinds.add(type(block))
            assert isinstance(block, TurboBlock)
            check_block(block)
