"""Put merge and restore into a pipeline or a denoiser, in place, and take them out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from turbovlm.config import MergeRestore
from turbovlm.errors import NothingToPatch, UnknownArchitecture
from turbovlm.plug.denoiser.guide import is_cross
from turbovlm.plug.denoiser.module import TurboDenoiser, TurboEntry, TurboModule, TurboWhole
from turbovlm.plug.denoiser.pipeline import PipelineSite, TurboPipeline, patches_of
from turbovlm.plug.denoiser.row import Denoiser
from turbovlm.plug.denoiser.state import DenoiserPatch, Kind, ModuleSite, PlainSite
from turbovlm.plug.denoiser.visible import check_visible
from turbovlm.plug.names import is_named
from turbovlm.plug.swap import Swap, is_same, parameters_of, plain_class

_BESIDE = "controlnet"  # steers a denoiser that a pipeline holds too; give it to apply by itself


def find_denoisers(model: Any, rows: Sequence[Denoiser]) -> dict[str, nn.Module]:
    """The denoisers in a pipeline or a module that the rows know, by name."""
    if isinstance(model, nn.Module):
        parts: Mapping[str, Any] = {"": model}
    else:
        parts = {n: p for n, p in components(model).items() if not n.startswith(_BESIDE)}
    roots = tuple(name for row in rows for name in row.roots)
    return {
        ".".join(filter(None, (part, name))): module
        for part, owner in parts.items()
        if isinstance(owner, nn.Module)
        for name, module in owner.named_modules()
        if is_named(module, roots)
    }


def components(model: Any) -> dict[str, Any]:
    """The parts of a diffusers pipeline; none for anything else."""
    parts = getattr(model, "components", None)
    return dict(parts) if isinstance(parts, Mapping) else {}


def restore_swaps(model: Any, config: MergeRestore, rows: Sequence[Denoiser]) -> list[Swap]:
    """The swaps that patch every denoiser of ``model``; nothing is changed.

    Raises:
        UnknownArchitecture: if no row knows a denoiser in it.
        NothingToPatch: if a denoiser holds no block of a row.
        UnseenAttention: if merged tokens should count in an attention that hides its logits.
    """
    roots = find_denoisers(model, rows)
    if not roots:
        raise UnknownArchitecture(_unknown(model, rows))
    # a denoiser that another pipeline holds too is patched once
    plans = [list(_plan(name, root, config, rows)) for name, root in roots.items()]
    fresh = [swap for plan in plans if not all(map(is_same, plan)) for swap in plan]
    return [*fresh, *_pipeline(model, fresh)]


def _pipeline(model: Any, fresh: Sequence[Swap]) -> Iterator[Swap]:
    """The swap of a pipeline that holds the denoisers."""
    if isinstance(model, nn.Module) or not callable(model):
        return
    patches: dict[int, Any] = {id(s.site.patch): s.site.patch for s in fresh}
    patches |= {id(patch): patch for patch in patches_of(model)}
    for patch in patches.values():
        patch.owners.add(model)
    host: Any = plain_class(model)
    site = PipelineSite(next(iter(patches.values())), host, parameters_of(host.__call__))
    yield Swap(model, TurboPipeline, site, entries=("__call__",))


def _plan(
    title: str, root: nn.Module, config: MergeRestore, rows: Sequence[Denoiser]
) -> Iterator[Swap]:
    own = [row for row in rows if is_named(root, row.roots)]
    patch = DenoiserPatch(own[0], config)
    yield Swap(root, TurboDenoiser, _plain(patch, root), entries=("enable_cache",))
    number = 0
    for name, block in root.named_modules():
        row = next((row for row in own if is_named(block, (row.block,))), None)
        if row is None or set(name.split(".")) & set(row.skip):
            continue
        yield from _block(patch, row, name, block, number)
        number += 1
    if not number:
        raise NothingToPatch(
            f"{title or 'the model'} ({type(root).__name__}) has no {_names(own)}: a UNet without "
            "cross-attention has nothing that can be merged and restored"
        )


def _plain(patch: DenoiserPatch, module: nn.Module) -> PlainSite:
    host = plain_class(module)
    return PlainSite(patch, host, parameters_of(host.forward))


def _block(
    patch: DenoiserPatch, row: Denoiser, name: str, block: nn.Module, number: int
) -> Iterator[Swap]:
    attentions = [m for n in row.attention if (m := getattr(block, n, None)) is not None]
    host = plain_class(block)
    names = parameters_of(host.forward)
    site = ModuleSite(patch, host, names, name, "whole", number, attentions[0], row)
    if row.whole:
        yield Swap(block, TurboWhole, _seen(site, attentions[0]))
        return
    yield Swap(block, TurboEntry, _plain(patch, block))
    for child in (*row.attention, *row.feed_forward):
        module = getattr(block, child, None)
        if module is None:
            continue
        kind: Kind = "feed_forward"
        if child in row.attention:
            kind = "cross_attention" if is_cross(module) else "self_attention"
        host = plain_class(module)
        names = parameters_of(host.forward)
        own = replace(site, host=host, names=names, name=f"{name}.{child}", kind=kind)
        yield Swap(module, TurboModule, _seen(own, module))


def _seen(site: ModuleSite, module: nn.Module) -> ModuleSite:
    """The site, if members can be counted in the attention of ``module`` where they must be."""
    config = site.patch.config
    attends = site.kind in ("self_attention", "whole")
    if config.proportional and attends and config.self_attention != 0:
        check_visible(module, site.name)
    return site


def _unknown(model: Any, rows: Sequence[Denoiser]) -> str:
    known = sorted({root.rsplit(".", 1)[-1] for row in rows for root in row.roots})
    if isinstance(model, nn.Module):
        subject = type(model).__name__
    elif parts := components(model):
        inside = ", ".join(type(p).__name__ for p in parts.values() if isinstance(p, nn.Module))
        subject = f"{type(model).__name__} (it holds {inside or 'no model'})"
    else:
        subject = type(model).__name__
    return (
        f"no denoiser that merge and restore know in {subject}: known are {', '.join(known)}; for "
        "an encoder use turbovlm.Merge"
    )


def _names(rows: Sequence[Denoiser]) -> str:
    return " or ".join(row.block.rsplit(".", 1)[-1] for row in rows)
