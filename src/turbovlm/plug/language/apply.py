"""Let a model hand fewer visual tokens to its language model, in place, and undo it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from turbovlm.config.visual_tokens import VisualTokens
from turbovlm.errors import UnknownArchitecture, UnsuitableBlock
from turbovlm.plug.language.model import TurboHead, TurboLanguage, TurboOuter, TurboPackedOuter
from turbovlm.plug.language.row import LanguageRefusal, LanguageRow
from turbovlm.plug.language.state import LanguagePatch, LanguageSite
from turbovlm.plug.names import is_named
from turbovlm.plug.swap import Swap, parameters_of, plain_class


def language_swaps(
    model: nn.Module,
    config: VisualTokens,
    rows: Sequence[LanguageRow],
    refusals: Sequence[LanguageRefusal] = (),
) -> list[Swap]:
    """The swaps that patch the vision-language model in ``model``; nothing is changed.

    Raises:
        UnknownArchitecture: if no row knows it, or it has no language model.
        UnsuitableBlock: if it is known and refused, with the reason.
    """
    outer, row = find(model, rows, refusals)
    patch = LanguagePatch(row, config, placeholders(outer, row))
    mixin = TurboPackedOuter if row.layout == "packed" else TurboOuter
    parts = [(outer, mixin), (getattr(outer, row.language), TurboLanguage)]
    parts += [(m, TurboHead) for m in model.modules() if is_named(m, row.heads)]
    return [Swap(module, mixed, _site(patch, module)) for module, mixed in parts]


def _site(patch: LanguagePatch, module: nn.Module) -> LanguageSite:
    host = plain_class(module)
    return LanguageSite(patch, host, parameters_of(host.forward))


def find(
    model: nn.Module, rows: Sequence[LanguageRow], refusals: Sequence[LanguageRefusal] = ()
) -> tuple[nn.Module, LanguageRow]:
    """The module that calls the language model, and its row.

    Raises:
        UnknownArchitecture, UnsuitableBlock: see `language_swaps`.
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
