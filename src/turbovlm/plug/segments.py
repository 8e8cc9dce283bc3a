"""Attention within the segments of a packed sequence, in one call for all segments of one length.

Qwen2-VL and its successors lay the patches of all images in one sequence and attend within images
or within windows. Without flash-attn transformers calls its attention once a segment: a picture of
1008 pixels has 81 windows in Qwen2.5-VL.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from turbovlm.errors import UnseenAttention, UnsupportedInput
from turbovlm.plug.attention import FUSED
from turbovlm.plug.names import bind
from turbovlm.plug.swap import host_forward, unpatched_forward

SEGMENTS = "cu_seqlens"
"""The argument of the attention that holds where segments begin and end."""


@dataclass(frozen=True)
class Layout:
    """Where the segments of a packed sequence of N tokens lie, those of one length together.

    Attributes:
        groups: length and number of the segments of each group.
        real: for each group ``(segments, length)`` bool, False for padding; None without padding.
        order: ``(M,)`` int64 the tokens group by group, where padding repeats the last token of
            its segment; None for one group without padding.
        inverse: ``(N,)`` int64 where each token stands in that order.
    """

    groups: tuple[tuple[int, int], ...]
    real: tuple[Tensor | None, ...]
    order: Tensor | None
    inverse: Tensor | None

    @staticmethod
    def of(lengths: tuple[int, ...], device: torch.device, step: int = 1) -> Layout:
        """The layout of segments of these lengths; kept, as every block needs the same.

        Args:
            lengths: of the segments, in tokens.
            device: of the tokens.
            step: lengths that are equal after rounding up to a multiple of this share a group,
                padded to its longest segment.
        """
        return _layout(lengths, device, step, torch.is_inference_mode_enabled())

    def split(self, x: Tensor) -> list[Tensor]:
        """``(N, ...)`` to one ``(segments, length, ...)`` for each length."""
        rows = x if self.order is None else x.index_select(0, self.order)
        parts = rows.split([length * count for length, count in self.groups])
        return [p.unflatten(0, (n, k)) for p, (k, n) in zip(parts, self.groups, strict=True)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Inverse of `split`."""
        if self.inverse is None:
            return parts[0].flatten(0, 1)
        return torch.cat([p.flatten(0, 1) for p in parts]).index_select(0, self.inverse)


@functools.lru_cache(maxsize=16)
def _layout(lengths: tuple[int, ...], device: torch.device, step: int, inference: bool) -> Layout:
    # tensors made in inference mode cannot be used in training, so that is part of the key
    members: dict[int, list[tuple[int, int]]] = {}
    for length, end in zip(lengths, accumulate(lengths), strict=True):
        if length:
            members.setdefault(-(-length // step), []).append((end - length, length))
    groups, rows, real = [], [], []
    for found in members.values():
        starts, counts = torch.tensor(found).unsqueeze(2).unbind(1)
        places = torch.arange(max(length for _, length in found))
        groups.append((len(places), len(found)))
        rows.append((starts + torch.minimum(places, counts - 1)).flatten())
        real.append(places < counts)
    padded = [bool((~r).any()) for r in real]
    masks = tuple(r.to(device) if p else None for r, p in zip(real, padded, strict=True))
    if len(groups) == 1 and not padded[0]:
        return Layout(tuple(groups), masks, None, None)
    order, mask = torch.cat(rows), torch.cat([r.flatten() for r in real])
    inverse = torch.empty(sum(lengths), dtype=torch.int64)
    inverse[order[mask]] = mask.nonzero()[:, 0]
    return Layout(tuple(groups), masks, order.to(device), inverse.to(device))


class SegmentMode(TorchFunctionMode):
    """Computes the one fused attention that runs while it is open within segments.

    Args:
        lengths: of the segments, in tokens.
        step: see `Layout.of`.

    Attributes:
        calls: attentions seen; 0 at the end means that a kernel hid them.
    """

    def __init__(self, lengths: tuple[int, ...], step: int = 1) -> None:
        super().__init__()
        self.lengths, self.step = lengths, step
        self.calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The attention goes to `attend`, everything else straight on."""
        if func is not FUSED:
            return func(*args, **kwargs) if kwargs else func(*args)
        self.calls += 1
        return self.attend(*args, **(kwargs or {}))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """``(1, H, N, d)`` each, to ``(1, H, N, d)``.

        Raises:
            UnsupportedInput: for a mask, or where tokens are not one packed sequence.
        """
        if query.shape[0] != 1 or attn_mask is not None or is_causal:
            raise UnsupportedInput(
                "attention within segments is written for one packed sequence without a mask: "
                "report the host, and take turbovlm off it (remove, unfuse_attention)"
            )
        layout = Layout.of(self.lengths, query.device, self.step)
        # over rows (N, H, d), which is how a joint projection lies in memory
        parts = zip(*(layout.split(t[0].transpose(0, 1)) for t in (query, key, value)), strict=True)
        kwargs["dropout_p"] = dropout_p
        outputs = [
            self.attend_group(layout, group, [t.transpose(1, 2) for t in part], kwargs)
            for group, part in enumerate(parts)
        ]
        return layout.join([o.transpose(1, 2) for o in outputs]).transpose(0, 1).unsqueeze(0)

    def attend_group(
        self, layout: Layout, group: int, qkv: Sequence[Tensor], given: Mapping[str, Any]
    ) -> Tensor:
        """The attention of the segments of one group: ``(segments, H, length, d)`` each."""
        query, key, value = qkv
        return FUSED(query, key, value, **given)


class SegmentedAttention(nn.Module):
    """Mixed in front of a packed attention's class: the host's forward, with `SegmentMode` open."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens ``(N, C)`` -> ``(N, C)``. While a compiler traces, the host's own code.

        Raises:
            UnseenAttention: if another attention implementation was chosen since.
        """
        site = cast(Any, self.__dict__.get("turbo_site"))
        if site is None:
            return unpatched_forward(self, SegmentedAttention, args, kwargs)
        if torch.compiler.is_compiling():
            return host_forward(self)(self, *args, **kwargs)
        given = bind(site.names, args, kwargs)
        bounds: Tensor = given[SEGMENTS]
        lengths = tuple(bounds.diff().tolist())
        if len(lengths) == 1:
            return host_forward(self)(self, **given)
        given[SEGMENTS] = torch.tensor([0, sum(lengths)], dtype=bounds.dtype)
        mode = SegmentMode(lengths)
        with mode:
            out = host_forward(self)(self, **given)
        if mode.calls != 1:
            raise UnseenAttention(
                "no fused attention was seen: after turbovlm.fuse_attention(model) the tower must "
                "keep attn_implementation='sdpa'; turbovlm.unfuse_attention(model) before another "
                "one is chosen"
            )
        return out
