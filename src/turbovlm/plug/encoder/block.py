"""Half blocks: the host's own forward runs twice, each time with one branch muted.

First half ``y = x + attention(x)`` with the MLP branch muted; then the merge; then the second
half ``y + mlp(y)`` with the attention branch muted. Layer scale, drop path, clamps, arguments and
return types stay the host's, and no forward is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from turbovlm.errors import UnsupportedInput
from turbovlm.kernels import choose_tokens, merge_tokens
from turbovlm.maths.match import Padding, match, unit_rows
from turbovlm.maths.plan import Plan, collapsed
from turbovlm.maths.schedule import removed_each
from turbovlm.maths.score import semantic_value
from turbovlm.maths.sets import EvenOdd
from turbovlm.plug.attention import Attention
from turbovlm.plug.encoder.arguments import along, real_tokens
from turbovlm.plug.encoder.half import NOTHING, run_half
from turbovlm.plug.encoder.readers import watched
from turbovlm.plug.encoder.state import EncoderCall, EncoderPatch
from turbovlm.plug.encoder.tokens import Tokens
from turbovlm.plug.encoder.trace import BlockRecord
from turbovlm.plug.names import bind
from turbovlm.plug.swap import unpatched_forward


@dataclass(frozen=True)
class BlockSite:
    """Where a block stands: its tower's patch, its layers, the class it had, its arguments."""

    patch: EncoderPatch
    layers: tuple[int, ...]
    host: type[nn.Module]
    names: tuple[str, ...]


class TurboBlock(nn.Module):
    """Mixed in front of the host's block class, whose own forward it runs."""

    turbo_site: BlockSite

    def __getattr__(self, name: str) -> Any:
        """A child of the block, or its stand-in while its branch is muted."""
        site = self.__dict__.get("turbo_site")
        if site is not None:
            call = site.patch.current()
            if call is not None and call.muted is not None and name in call.muted:
                return call.muted[name]
        return super().__getattr__(name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The host's block with a merge between its two branches.

        Args:
            *args: what the host's block takes; tokens ``(B, N, C)`` first.
            **kwargs: likewise.

        Returns:
            ``(B, N - r, C)``; ``(B, N0, C)`` from a block after which all positions are read.

        Raises:
            UnsupportedInput: for a mask or table laid out along tokens that the row does not
                name, or a mask that is not known to mark padding.
            UnseenAttention: if the attention kernel hides its inputs.
        """
        site = self.__dict__.get("turbo_site")
        if site is None:
            return unpatched_forward(self, TurboBlock, args, kwargs)
        patch = site.patch
        given = bind(site.names, args, kwargs)
        x = given.pop(site.names[0])
        if isinstance(x, torch.fx.Proxy):
            raise UnsupportedInput(
                "a model that turbovlm patched cannot be traced by torch.fx (torchvision's "
                "create_feature_extractor): read features with forward hooks, or "
                "turbovlm.remove(model) first"
            )
        training = self.training or torch.is_grad_enabled()
        call, layer = patch.enter(
            site.layers, x, training, bool(self._forward_hooks) and watched(self)
        )
        alone = not (call.declared or torch.compiler.is_compiling())
        before = patch.begin(call) if alone else None
        try:
            y = self.turbo_run(BlockRun(self, patch, call, layer), x, given)
        finally:
            if alone:
                patch.end(before)
        patch.leave(layer, call, y)
        return y

    def turbo_run(self, step: BlockRun, x: Tensor, given: dict[str, Any]) -> Tensor:
        """What `forward` does while its call is open."""
        return _forward(step, x, given)


class BlockRun(NamedTuple):
    """A block that runs, in which call, and where it stands."""

    block: TurboBlock
    patch: EncoderPatch
    call: EncoderCall
    layer: int


def _forward(step: BlockRun, x: Tensor, given: dict[str, Any]) -> Tensor:
    """One block: the host's forward whole, whole with sizes, or in halves with a merge between."""
    block, patch, call, layer = step
    tokens = call.tokens
    length = x.shape[1] if tokens is None else tokens.length
    r = patch.amount(layer, call.start or length, length)
    whole = r == 0 and not patch.observers
    if tokens is None and whole:
        if patch.recorders:
            call.plans.append(None)
        return run_half(block, call, NOTHING, x, given)
    if tokens is None:
        tokens = _first_tokens(patch, call, x, given)
        full = tokens.order is not None
    else:
        full = call.full
    if full:
        x = tokens.select(x)
    along(patch.row, tokens, patch.prefix, given)
    plan = None
    if whole:
        watch = patch.row.attention[0], Attention(tokens.bias)
        y = run_half(block, call, NOTHING, x, given, watch=watch)
    else:
        y, plan, tokens = _merging(step, x, r, tokens, given)
    call.tokens = tokens
    if patch.recorders:
        call.plans.append(plan)
    call.full = call.reading.needs(layer, patch.depth)
    return tokens.restore(y) if call.full else y


def _first_tokens(
    patch: EncoderPatch, call: EncoderCall, x: Tensor, given: dict[str, Any]
) -> Tokens:
    """Sizes before the first merge: those of padding are 0."""
    if call.reading.decodes:
        raise UnsupportedInput(
            "this call is causal (a decoder), where tokens cannot be merged: turbovlm.remove(model)"
        )
    mask = given.get(patch.row.mask or "")
    real = real_tokens(mask, x.shape[0], call.reading.padding)
    if real is None:
        return Tokens(x.shape[1])
    if patch.rules[0].released_order:
        raise UnsupportedInput(
            "the paper's preset (Merge.paper) knows no padding: give samples of one length, or use "
            "Merge"
        )
    if patch.config.speedup is not None:
        raise UnsupportedInput(
            "Merge(speedup=...) fits r to the length of the batch, so that with padding an answer "
            "would depend on its neighbours: give r or ratio, or samples of one length"
        )
    return Tokens.padded(real, patch.prefix)


def _merging(
    step: BlockRun, x: Tensor, r: int, tokens: Tokens, given: dict[str, Any]
) -> tuple[Tensor, Plan | None, Tokens]:
    """In halves, with a merge between them unless r is 0: what comes out, the plan, the tokens."""
    block, patch, call, layer = step
    schedule, observers = patch.schedule(tokens.start), patch.observers
    collapses = schedule.collapses(layer, patch.depth)
    seen = Attention(tokens.bias, None if collapses and not observers else patch.look(tokens))
    watch = patch.row.attention[0], seen
    y = run_half(block, call, patch.mlp_muted, x, given, watch=watch)
    if r == 0:
        _observed(step, y, seen, tokens.size, None)
        return run_half(block, call, patch.attention_muted, y, given), None, tokens
    padding = None
    if tokens.count is not None:
        own = removed_each(schedule, layer, patch.depth, tokens.count, patch.prefix)
        padding = Padding(tokens.count, own)
    if collapses:
        plan = collapsed(y.shape[0], y.shape[1], patch.prefix, y.device)
    else:
        plan = _choose(patch, layer, seen, y.shape[1], r, padding)
    _observed(step, y, seen, tokens.size, plan)
    y, size, bias = merge_tokens(y, tokens.size, plan)
    tokens = tokens.after(plan, size, bias, None if padding is None else padding.removed)
    return run_half(block, call, patch.attention_muted, y, given), plan, tokens


def _observed(
    step: BlockRun, y: Tensor, seen: Attention, size: Tensor | None, plan: Plan | None
) -> None:
    """Show the block to those who observe."""
    patch, layer = step.patch, step.layer
    observers = patch.observers
    if not observers:
        return
    value = semantic_value(seen.logits) if seen.logits is not None else seen.value
    assert value is not None
    record = BlockRecord(layer, patch.prefix, y.detach(), value.detach(), size, plan)
    for observe in observers:
        observe(record)


def _choose(
    patch: EncoderPatch, layer: int, seen: Attention, length: int, r: int, padding: Padding | None
) -> Plan:
    """Which tokens are merged, from what was seen of the attention."""
    sets, rule = EvenOdd(length, patch.prefix), patch.rules[layer]
    # who observes sees the guide under every score; the score does not
    value, logits = (seen.value, seen.logits) if rule.reads_value else (None, None)
    if seen.unit is not None:
        return choose_tokens(seen.unit, logits, r, sets, rule, padding)
    assert seen.metric is not None
    unit = unit_rows(seen.metric)
    return match(unit, value, r, sets, rule, padding).plan
