"""Put merge and restore into a pipeline or a denoiser, in place, and take them out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from turbovlm.config import MergeRestore
from turbovlm.errors import NothingToPatch, UnknownArchitecture
from turbovlm.plug.generation.guide import is_cross
from turbovlm.plug.generation.module import TurboDenoiser, TurboEntry, TurboModule, TurboWhole
from turbovlm.plug.generation.proportional import check_visible
from turbovlm.plug.generation.row import Denoiser
from turbovlm.plug.generation.state import Kind, ModuleSite, Patch, PlainSite
from turbovlm.plug.row import is_named
from turbovlm.plug.swap import Stand, install, parameters_of, uninstall

MIXINS = (TurboDenoiser, TurboEntry, TurboModule, TurboWhole)
_BESIDE = "controlnet"  # steers a denoiser that a pipeline holds too; give it to apply by itself


@dataclass(frozen=True)
class _Swap:
    module: nn.Module
    mixin: type[nn.Module]
    site: Stand


def denoisers(model: Any, rows: Sequence[Denoiser]) -> dict[str, nn.Module]:
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


def patched(model: Any) -> Iterator[nn.Module]:
    """Every module inside ``model`` that merges and restores."""
    owners = [model] if isinstance(model, nn.Module) else list(components(model).values())
    for owner in owners:
        if isinstance(owner, nn.Module):
            yield from (m for m in owner.modules() if isinstance(m, MIXINS))


def patches_of(model: Any) -> tuple[Patch, ...]:
    """The patches inside ``model``, one per denoiser."""
    return tuple(m.turbo_site.patch for m in patched(model) if isinstance(m, TurboDenoiser))


def apply_rows(model: Any, config: MergeRestore, rows: Sequence[Denoiser]) -> None:
    """Patch every denoiser of ``model``; on any error the model is as it was.

    Raises:
        UnknownArchitecture: if no row knows a denoiser in it.
        NothingToPatch: if a denoiser holds no block of a row.
        UnsuitableBlock: if another plug-in replaced a forward.
        UnseenAttention: if merged tokens should count in an attention that hides its logits.
    """
    roots = denoisers(model, rows)
    if not roots:
        raise UnknownArchitecture(_unknown(model, rows))
    swaps = [swap for name, root in roots.items() for swap in _plan(name, root, config, rows)]
    done: list[nn.Module] = []
    try:
        for swap in swaps:
            install(swap.module, swap.mixin, swap.site)
            done.append(swap.module)
    except BaseException:
        for module in done:
            uninstall(module)
        raise


def _plan(
    title: str, root: nn.Module, config: MergeRestore, rows: Sequence[Denoiser]
) -> Iterator[_Swap]:
    own = [row for row in rows if is_named(root, row.roots)]
    patch = Patch(own[0], config)
    yield _Swap(root, TurboDenoiser, PlainSite(patch, type(root), parameters_of(type(root))))
    number = 0
    for name, block in root.named_modules():
        row = next((row for row in own if is_named(block, (row.block,))), None)
        if row is None:
            continue
        yield from _block(patch, row, name, block, number)
        number += 1
    if not number:
        raise NothingToPatch(
            f"{title or 'the model'} ({type(root).__name__}) has no {_names(own)}: a UNet without "
            "cross-attention has nothing that can be merged and restored"
        )


def _block(
    patch: Patch, row: Denoiser, name: str, block: nn.Module, number: int
) -> Iterator[_Swap]:
    attentions = [m for n in row.attention if (m := getattr(block, n, None)) is not None]
    if row.whole:
        site = _site(patch, row, name, "whole", number, attentions[0], block)
        yield _Swap(block, TurboWhole, site)
        return
    yield _Swap(block, TurboEntry, PlainSite(patch, type(block), parameters_of(type(block))))
    for child in (*row.attention, *row.feed_forward):
        module = getattr(block, child, None)
        if module is None:
            continue
        kind: Kind = "feed_forward"
        if child in row.attention:
            kind = "cross_attention" if is_cross(module) else "self_attention"
        site = _site(patch, row, f"{name}.{child}", kind, number, attentions[0], module)
        yield _Swap(module, TurboModule, site)


def _site(
    patch: Patch,
    row: Denoiser,
    name: str,
    kind: Kind,
    number: int,
    attention: nn.Module,
    module: nn.Module,
) -> ModuleSite:
    host, config = type(module), patch.config
    if config.proportional and kind in ("self_attention", "whole") and config.self_attention != 0:
        check_visible(module if kind == "self_attention" else attention, name)
    return ModuleSite(patch, host, parameters_of(host), name, kind, number, attention, row)


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
