"""Towers that lay the patches of all images in one sequence: Qwen2-VL and its successors.

The whole sequence is one sample, so that sizes, plans and restoring are those of every encoder.
What differs: each image loses tokens of its own, pairs stay inside the segment in which the block
attends (an image, or a window of it), and attention runs within what is left of the segments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from turbovlm.errors import UnsupportedInput
from turbovlm.kernels import merge_tokens
from turbovlm.maths.match import Rule, match, unit_rows
from turbovlm.maths.merge import LOG_EMPTY
from turbovlm.maths.plan import Plan, complete
from turbovlm.maths.score import semantic_value
from turbovlm.maths.sets import EvenOdd, EvenOddWithin
from turbovlm.plug.attention import Attention, Look
from turbovlm.plug.encoder.apart import PackedView, apart
from turbovlm.plug.encoder.arguments import unfollowed
from turbovlm.plug.encoder.block import BlockRun, TurboBlock
from turbovlm.plug.encoder.half import NOTHING, run_half
from turbovlm.plug.encoder.row import Row
from turbovlm.plug.encoder.state import EncoderCall, EncoderPatch
from turbovlm.plug.encoder.tokens import Tokens
from turbovlm.plug.encoder.tower import TurboTower
from turbovlm.plug.segments import Layout, SegmentMode
from turbovlm.plug.torch_private import uncompiled

STEP = 64
"""Segments whose lengths round up to the same multiple attend in one batch: all windows do, which
lose different numbers of tokens, and images of one size."""


class PackedTokens(Tokens):
    """Tokens of a packed sequence.

    Attributes:
        whole: tokens of each image at the start.
        images: tokens of each image now.
    """

    def __init__(
        self, whole: tuple[int, ...], size: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__(sum(whole), size, bias)
        self.whole, self.images = whole, whole

    def _like(self, size: Tensor | None, bias: Tensor | None = None) -> PackedTokens:
        tokens = PackedTokens(self.whole, size, bias)
        tokens.images = self.images
        return tokens

    def shorter(self, plan: Plan, size: Tensor, bias: Tensor, gone: Sequence[int]) -> PackedTokens:
        """The tokens after one more merge, which took so many from each image."""
        tokens = self.after(plan, size, bias, None)
        tokens.images = tuple(n - r for n, r in zip(self.images, gone, strict=True))
        return tokens

    def segments(self, bounds: Tensor) -> tuple[int, ...]:
        """How many tokens are left of each segment of the sequence at the start.

        Args:
            bounds: ``(segments + 1,)`` where these began and ended.
        """
        lengths = tuple(bounds.diff().tolist())
        if lengths == self.whole:
            return self.images
        position = self.position()
        if position is None:
            return lengths
        if position.is_meta:
            position = self._even()
        ends = torch.searchsorted(position[0], bounds.to(position))
        return tuple(ends.diff().tolist())

    def _even(self) -> Tensor:
        """``(1, N)`` positions of evenly spread survivors, where no values are at hand."""
        starts = accumulate(self.whole, initial=0)
        pairs = zip(self.whole, self.images, starts, strict=False)
        parts = [start + torch.arange(now) * whole // now for whole, now, start in pairs]
        return torch.cat(parts).unsqueeze(0)


class PackedAttention(SegmentMode):
    """Adds log size within segments, and takes what matching needs.

    Args:
        lengths: of the segments, in tokens.
        bias: ``(1, N)`` fp32 log size, or None before the first merge.
        look: what matching needs, or None.
    """

    def __init__(
        self, lengths: tuple[int, ...], bias: Tensor | None = None, look: Look | None = None
    ) -> None:
        super().__init__(lengths, STEP)
        self.bias, self.look = bias, look
        self._seen: list[tuple[Tensor, Tensor | None]] = []
        self._layout: Layout | None = None

    def attend_group(
        self, layout: Layout, group: int, qkv: Sequence[Tensor], given: Mapping[str, Any]
    ) -> Tensor:
        """One group goes through the attention mode of every encoder, as a batch with padding."""
        real = layout.real[group]
        bias = None if self.bias is None else layout.split(self.bias[0])[group]
        if real is not None:
            bias = torch.zeros_like(real, dtype=torch.float32) if bias is None else bias
            bias = bias.masked_fill(~real, LOG_EMPTY)
        look = None if self.look is None else dataclasses.replace(self.look, real=real)
        with Attention(bias, look) as seen:
            out = super().attend_group(layout, group, qkv, given)
        if look is not None:
            self._layout = layout
            self._seen.append((_unit(seen), _relative(seen, real)))
        return out

    @property
    def unit(self) -> Tensor:
        """``(N, d)`` fp32 keys or queries averaged over heads, of length 1."""
        assert self._layout is not None
        return self._layout.join([unit for unit, _ in self._seen])

    @property
    def value(self) -> Tensor | None:
        """``(N,)`` fp32 semantic value A times the tokens of the segment: 1 for the average one."""
        assert self._layout is not None
        values = [value for _, value in self._seen if value is not None]
        return self._layout.join(values) if values else None


def _unit(seen: Attention) -> Tensor:
    if seen.unit is not None:
        return seen.unit
    assert seen.metric is not None
    return unit_rows(seen.metric)


def _relative(seen: Attention, real: Tensor | None) -> Tensor | None:
    value = seen.value if seen.logits is None else semantic_value(seen.logits)
    if value is None:
        return None
    return value * (value.shape[1] if real is None else real.sum(1, keepdim=True))


class PackedBlock(TurboBlock):
    """A block of a packed tower."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `TurboBlock.forward`, on tokens ``(N, C)`` or ``(1, N, C)``."""
        return uncompiled(TurboBlock.forward, self, *args, **kwargs)

    def turbo_run(self, step: BlockRun, x: Tensor, given: dict[str, Any]) -> Tensor:
        """One block on tokens ``(N, C)`` or ``(1, N, C)``."""
        _, patch, call, layer = step
        observers = patch.observers
        tokens = _tokens(patch, call, x, given)
        pairs = zip(tokens.whole, tokens.images, strict=True)
        amounts = [patch.amount(layer, start, now) for start, now in pairs]
        if call.tokens is None and not any(amounts) and not observers:
            if patch.recorders:
                call.plans.append(None)
            return run_half(self, call, NOTHING, x, given)
        if call.full:
            x = tokens.select(_sample(x)).view(*x.shape[:-2], -1, x.shape[-1])
        segments = _follow(patch.row, tokens, given)
        if segments != tokens.images:
            most = within_reach(tokens.images, segments)
            amounts = [min(pair) for pair in zip(amounts, most, strict=True)]
        halves = any(amounts) or bool(observers)
        seen = PackedAttention(segments, tokens.bias, patch.look(tokens) if halves else None)
        watch, plan = (patch.row.attention[0], seen), None
        if halves:
            y = run_half(self, call, patch.mlp_muted, x, given, watch=watch)
            if any(amounts):
                plan = choose_packed(patch.rules[layer], seen, tokens.images, amounts)
            if observers:
                assert seen.value is not None
                view = PackedView(_sample(y), seen.value, tokens.size, plan)
                record = apart(view, tokens.images, amounts, layer, patch.prefix)
                for observe in observers:
                    observe(record)
            if plan is not None:
                y, size, bias = merge_tokens(_sample(y), tokens.size, plan)
                tokens = tokens.shorter(plan, size, bias, amounts)
                y = y.view(*x.shape[:-2], -1, x.shape[-1])
            y = run_half(self, call, patch.attention_muted, y, given)
        else:
            y = run_half(self, call, NOTHING, x, given, watch=watch)
        call.tokens = tokens
        if patch.recorders:
            call.plans.append(plan)
        call.full = call.reading.needs(layer, patch.depth)
        if call.full:
            y = tokens.restore(_sample(y)).view(*x.shape[:-2], -1, x.shape[-1])
        return y


def _sample(x: Tensor) -> Tensor:
    """``(1, N, C)``."""
    return x if x.dim() == 3 else x.unsqueeze(0)


def _tokens(
    patch: EncoderPatch, call: EncoderCall, x: Tensor, given: Mapping[str, Any]
) -> PackedTokens:
    """What is known of the tokens; before the first merge, that each patch is one."""
    if call.tokens is not None:
        assert isinstance(call.tokens, PackedTokens)
        return call.tokens
    packed, images = patch.row.packed, call.reading.images
    assert packed is not None
    if not images and packed.bounds is not None and packed.whole is None:
        images = tuple(given[packed.bounds].diff().tolist())
    if not images:
        raise UnsupportedInput(
            "blocks run outside the forward of their tower, so that it is not known where images "
            "end: run the tower, or turbovlm.remove(model)"
        )
    if sum(images) != x.shape[-2]:
        raise UnsupportedInput(
            f"the images have {sum(images)} patches and the block got {x.shape[-2]}: pass the "
            f"{packed.grid} of these images, or turbovlm.remove(model)"
        )
    return PackedTokens(images)


def _follow(row: Row, tokens: PackedTokens, given: dict[str, Any]) -> tuple[int, ...]:
    """Let the arguments follow the survivors, in place; returns what is left of the segments."""
    assert row.packed is not None
    position, segments = tokens.position(), tokens.images
    for name, value in given.items():
        if name == row.packed.bounds:
            segments = tokens.segments(value)
            given[name] = value.new_tensor([0, tokens.length], device="cpu")
        elif name == row.mask:
            given[name] = None  # attention runs within the images
        elif name in row.follow:
            if position is not None:
                given[name] = tuple(table.index_select(0, position[0]) for table in value)
        elif isinstance(value, Tensor):
            raise unfollowed(name, value)
    return segments


def within_reach(images: Sequence[int], segments: Sequence[int]) -> list[int]:
    """How many tokens of each image can go: its sources with a destination in their segment.

    Raises:
        UnsupportedInput: if a segment reaches over images.
    """
    left = iter(segments)
    found = []
    for tokens in images:
        at = possible = 0
        while at < tokens:
            length = next(left)
            destinations = (at + length) // 2 - at // 2  # odd positions of the image
            possible += length - destinations if destinations else 0
            at += length
        if at != tokens:
            raise UnsupportedInput(
                "the attention reaches over several images, or frames of a video, of which each "
                "is merged by itself: turbovlm.remove(model) before using that feature"
            )
        found.append(possible)
    return found


def choose_packed(
    rule: Rule, seen: PackedAttention, images: Sequence[int], amounts: Sequence[int]
) -> Plan:
    """Which tokens are merged: so many of each image, pairs inside what attended to one another."""
    # who observes sees the guide under every score; the score does not
    unit, value = seen.unit, seen.value if rule.reads_value else None
    ids = None
    if seen.lengths != tuple(images):
        counts = torch.tensor(seen.lengths)
        ids = torch.repeat_interleave(torch.arange(len(counts)), counts).to(unit.device)
    alike: dict[tuple[int, int], list[int]] = {}
    for tokens, r, end in zip(images, amounts, accumulate(images), strict=True):
        if r:
            alike.setdefault((tokens, r), []).append(end - tokens)
    sources, destinations = [], []
    for (tokens, r), firsts in alike.items():
        rows = (torch.tensor(firsts).unsqueeze(1) + torch.arange(tokens)).to(unit.device)
        sets = EvenOdd(tokens) if ids is None else EvenOddWithin(tokens, within=ids[rows])
        attention = None if value is None else value[rows] / tokens
        plan = match(unit[rows], attention, r, sets, rule).plan
        sources.append(rows.gather(1, plan.source).flatten())
        destinations.append(rows.gather(1, plan.destination).flatten())
    source, destination = (torch.cat(parts).unsqueeze(0) for parts in (sources, destinations))
    return complete(source, destination, sum(images))[0]


class PackedTower(TurboTower):
    """A tower that packs images: lengths depend on values, so a compiler leaves it to torch."""

    def turbo_enter(
        self, name: str, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """As `TurboTower.turbo_enter`."""
        return uncompiled(super().turbo_enter, name, function, args, kwargs)
