"""The classes mixed in front of a denoiser, its blocks and its modules."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import UnsupportedInput
from turbovlm.maths.fold import Fold
from turbovlm.plug.denoiser.state import ModuleSite, PlainSite
from turbovlm.plug.denoiser.visible import counting
from turbovlm.plug.names import bind
from turbovlm.plug.swap import suspended, unpatched_forward

TEXT = "encoder_hidden_states"
_CONVERSION = "from_unet2d"  # of UNetMotionModel


class TurboDenoiser(nn.Module):
    """Opens the state of one forward and closes it again."""

    turbo_site: PlainSite

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's own forward; what it takes and returns is the host's."""
        site = self.__dict__.get("turbo_site")
        if site is None:
            return unpatched_forward(self, TurboDenoiser, args, kwargs)
        patch = site.patch
        call = patch.call_of(self, bind(site.names, args, kwargs))
        before = patch.begin(call)
        try:
            out = super().forward(*args, **kwargs)
        finally:
            patch.end(before)
        if patch.recorders:
            patch.record(tuple(call.moves))
        return out

    def turbo_enter(
        self,
        name: str,  # enable_cache, the one entry
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A cache of diffusers looks blocks up by their exact class."""
        with suspended(self):
            return function(self, *args, **kwargs)

    @property
    def attn_processors(self) -> dict[str, Any]:
        """The host's own.

        Raises:
            UnsupportedInput: for a conversion to a video model, which would copy the weights into
                a new model and lose the setting without a word. It has no other way to tell us.
        """
        if sys._getframe(1).f_code.co_name == _CONVERSION and "turbo_site" in self.__dict__:
            raise UnsupportedInput(
                f"{_CONVERSION} copies the weights into a new model, which would not merge: "
                "turbovlm.remove(model), convert, then turbovlm.apply to the new one"
            )
        return super().attn_processors  # type: ignore[misc]


class TurboEntry(nn.Module):
    """A block whose incoming tokens measure similarity, and what the prompt has changed."""

    turbo_site: PlainSite

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's own forward."""
        site = self.__dict__.get("turbo_site")
        if site is None:
            return unpatched_forward(self, TurboEntry, args, kwargs)
        given = bind(site.names, args, kwargs)
        x = given[site.names[0]]
        with site.patch.block(x) as call:
            call.block, call.text = x, _prompt(given)
            return super().forward(*args, **kwargs)


class TurboModule(nn.Module):
    """An attention or feed-forward module ``f`` as ``restore(f(merge(x)))`` (Eq. 14)."""

    turbo_site: ModuleSite

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the host's module takes and returns, tokens ``(B, N, C)`` first.

        Raises:
            UnsupportedInput: for a mask laid out along the visual tokens.
            UnseenAttention: for an attention kernel that hides its logits.
        """
        site = self.__dict__.get("turbo_site")
        if site is None:
            return unpatched_forward(self, TurboModule, args, kwargs)
        given = bind(site.names, args, kwargs)
        x = given.pop(site.names[0])
        fold = site.patch.fold(site, self, x)
        if fold is None:
            return super().forward(*args, **kwargs)
        _check_masks(site, given)
        out = _run(site, super().forward, fold, fold.merge(x), given)
        pointwise = site.kind == "feed_forward"
        if not isinstance(out, tuple):
            return fold.restore(out, pointwise)
        # a joint attention returns the prompt's tokens beside them
        visual = site.row.restored
        return tuple(fold.restore(y, pointwise) if i in visual else y for i, y in enumerate(out))


class TurboWhole(nn.Module):
    """A block with parallel branches, merged before and restored after less its residual."""

    turbo_site: ModuleSite

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the host's block takes and returns: visual tokens first, then the prompt's."""
        site = self.__dict__.get("turbo_site")
        if site is None:
            return unpatched_forward(self, TurboWhole, args, kwargs)
        given = bind(site.names, args, kwargs)
        x = given.pop(site.names[0])
        with site.patch.block(x):
            fold = site.patch.fold(site, self, x)
            if fold is None:
                return super().forward(*args, **kwargs)
            merged = fold.merge(x)
            text, y = _run(site, super().forward, fold, merged, given)
            return text, x + fold.restore(y - merged, pointwise=True)


def _prompt(given: dict[str, Any]) -> Tensor | None:
    """The prompt's tokens; an IP-Adapter hands a pair of them and of tokens of images."""
    text = given.get(TEXT)
    return text[0] if isinstance(text, tuple) else text


def _run(
    site: ModuleSite,
    host: Callable[..., Any],
    fold: Fold,
    merged: Tensor,
    given: dict[str, Any],
) -> Any:
    """The host's forward on the survivors ``(B, N - r, C)``, and on what else it was given."""
    attends = site.kind in ("self_attention", "whole")
    text = given.get(TEXT) if attends else None
    joined = 0 if text is None else text.shape[1]

    def open_for(first: int, last: int) -> AbstractContextManager[Any]:
        if not (attends and site.patch.config.proportional):
            return nullcontext()
        heads: Any = site.attention.heads
        return counting(fold.bias[first:last], joined, site.row.prompt_first, heads, site.name)

    tables = [name for name in site.row.follow if given.get(name) is not None]
    if not tables:
        with open_for(0, len(merged)):
            return host(merged, **given)
    # rotary tables have no batch dimension: samples that keep other tokens go one by one
    own = _follow(fold, given, tables, joined)
    parts, batch = [], len(merged)
    for i in range(batch):
        with open_for(i, i + 1):
            parts.append(host(merged[i : i + 1], **_sample(given, i, batch), **own[i]))
    return _joined(parts)


def _check_masks(site: ModuleSite, given: dict[str, Any]) -> None:
    if site.kind == "self_attention" and given.get("attention_mask") is not None:
        raise UnsupportedInput(
            f"{site.name} got an attention mask along the visual tokens, which cannot follow a "
            "merge: leave it out, or set self_attention=0"
        )
    if given.get("ip_adapter_masks") is not None:
        raise UnsupportedInput(
            f"{site.name} got masks of an IP-Adapter along the visual tokens, which cannot follow "
            "a merge: leave them out, or set cross_attention=0"
        )


def _follow(
    fold: Fold, given: dict[str, Any], tables: list[str], text: int
) -> list[dict[str, Any]]:
    """Per sample, the rows of each table of the prompt and of the survivors."""
    own = []
    for keep in fold.plan.keep:
        rows = torch.cat([torch.arange(text, device=keep.device), keep + text])
        own.append(
            {
                name: tuple(t[rows] for t in given[name])
                if isinstance(given[name], tuple)
                else given[name][rows]
                for name in tables
            }
        )
    for name in tables:
        given.pop(name)
    return own


def _sample(value: Any, index: int, batch: int) -> Any:
    """An argument for one sample; what has no batch dimension is the same for all."""
    if isinstance(value, dict):
        return {name: _sample(part, index, batch) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_sample(part, index, batch) for part in value)
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch:
        return value[index : index + 1]
    return value


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return torch.cat(parts)
