"""Let a model hand fewer visual tokens to its language model, in place, and undo it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from turbovlm.config.visual_tokens import VisualTokens
from turbovlm.errors import UnknownArchitecture, UnsuitableBlock
from turbovlm.plug.language.model import TurboHead, TurboLanguage, TurboOuter, TurboPackedOuter
from turbovlm.plug.language.row import LanguageRefusal, LanguageRow
from turbovlm.plug.language.state import Patch, Site
from turbovlm.plug.row import is_named
from turbovlm.plug.swap import install, parameters_of, uninstall

CONFIG_ATTRIBUTE = "turbovlm_visual_tokens"
MIXINS = (TurboHead, TurboOuter, TurboLanguage)


def apply_rows(
    model: nn.Module,
    config: VisualTokens,
    rows: Sequence[LanguageRow],
    refusals: Sequence[LanguageRefusal] = (),
) -> None:
    """Patch the vision-language model in ``model``; on any error it is as it was.

    Raises:
        UnknownArchitecture: if no row knows it, or it has no language model.
        UnsuitableBlock: if it is known and refused, with the reason.
    """
    outer, row = find(model, rows, refusals)
    language = getattr(outer, row.language)
    patch = Patch(row, config, placeholders(outer, row))
    mixin = TurboPackedOuter if row.layout == "packed" else TurboOuter
    parts = [(outer, mixin), (language, TurboLanguage)]
    parts += [(m, TurboHead) for m in model.modules() if is_named(m, row.heads)]
    done: list[nn.Module] = []
    try:
        for module, mixed in parts:
            host = type(module)
            install(module, mixed, Site(patch, host, parameters_of(host)))
            done.append(module)
    except BaseException:
        for module in done:
            uninstall(module)
        raise
    if hasattr(model, "config"):
        setattr(model.config, CONFIG_ATTRIBUTE, config.to_dict())


def find(
    model: nn.Module, rows: Sequence[LanguageRow], refusals: Sequence[LanguageRefusal] = ()
) -> tuple[nn.Module, LanguageRow]:
    """The module that calls the language model, and its row.

    Raises:
        UnknownArchitecture, UnsuitableBlock: see `apply_rows`.
    """
    for module in model.modules():
        row = next((r for r in rows if is_named(module, (r.outer,))), None)
        if row is not None and isinstance(getattr(module, row.language, None), nn.Module):
            return module, row
        refusal = next((r for r in refusals if is_named(module, r.names)), None)
        if refusal is not None:
            raise UnsuitableBlock(f"{type(module).__name__} is refused: {refusal.reason}")
    known = ", ".join(sorted({row.outer.rsplit(".", 1)[-1] for row in rows}))
    raise UnknownArchitecture(
        f"no vision-language model whose prompt can be shortened in {type(model).__name__}: known "
        f"are {known}; for an encoder use turbovlm.Merge"
    )


def placeholders(outer: nn.Module, row: LanguageRow) -> dict[str, int]:
    """Modality to the id of its placeholder, for those that this model has."""
    ids = {m: getattr(outer.config, name, None) for m, name in row.tokens.items()}
    return {m: int(i) for m, i in ids.items() if i is not None}


def remove_rows(model: nn.Module) -> None:
    """Take the swap and the stored setting out of ``model`` again."""
    for module in [m for m in model.modules() if isinstance(m, MIXINS)]:
        uninstall(module)
    for module in model.modules():
        if hasattr(getattr(module, "config", None), CONFIG_ATTRIBUTE):
            delattr(module.config, CONFIG_ATTRIBUTE)


def patched(model: nn.Module) -> bool:
    """Whether ``model`` hands fewer visual tokens to its language model."""
    return bool(patches_of(model))


def patches_of(model: nn.Module) -> tuple[Patch, ...]:
    """The patches inside ``model``: one, or none."""
    return tuple(m.turbo_site.patch for m in model.modules() if isinstance(m, TurboOuter))


def stored_config(model: Any) -> VisualTokens | None:
    """The setting that ``save_pretrained`` stored with the model; None if there is none."""
    stored = getattr(getattr(model, "config", None), CONFIG_ATTRIBUTE, None)
    return None if stored is None else VisualTokens.from_dict(dict(stored))
