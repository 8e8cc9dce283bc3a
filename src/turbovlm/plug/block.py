"""Half blocks: the host's own forward runs twice, each time with one branch muted.

First half ``y = x + attention(x)`` with the MLP branch muted; then the merge; then the second
half ``y + mlp(y)`` with the attention branch muted. Layer scale, drop path, clamps, arguments and
return types stay the host's, and nobody's forward is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import UnseenAttention
from turbovlm.maths.matching import Plan, collapse, match
from turbovlm.maths.merging import merge, restore, take
from turbovlm.plug.arguments import along, bind, seed
from turbovlm.plug.state import Call, Patch, Tokens
from turbovlm.plug.tap import Tap


@dataclass(frozen=True)
class Site:
    """Where a block stands: its tower's patch, its index, the class it had, its arguments."""

    patch: Patch
    layer: int
    host: type[nn.Module]
    names: tuple[str, ...]


class TurboBlock(nn.Module):
    """Mixed in front of the host's block class; ``super().forward`` is the host's own."""

    turbo_site: Site

    def __getattr__(self, name: str) -> Any:
        """A child of the block, or a mute in its place while its branch stands still."""
        site = self.__dict__["turbo_site"]
        call = site.patch.current()
        if call is not None and name in call.muted:
            return site.patch.mute(name)
        return super().__getattr__(name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The host's block with a merge between its two branches.

        Args:
            *args: what the host's block takes; tokens ``(B, N, C)`` first.
            **kwargs: likewise.

        Returns:
            ``(B, N - r, C)``; ``(B, N0, C)`` from a block after which the count is restored.

        Raises:
            UnsupportedInput: for a mask or table laid out along tokens that the row does not
                name, or a mask that is no padding mask.
            UnseenAttention: if the attention kernel hides its inputs.
        """
        site = self.turbo_site
        patch, layer = site.patch, site.layer
        given = bind(site.names, args, kwargs)
        x = given.pop(site.names[0])
        call = patch.enter(layer, x, self.training or torch.is_grad_enabled())
        tokens = call.tokens
        if tokens.position is not None and x.shape[1] != tokens.position.shape[1]:
            x = take(x, tokens.position)  # the block before this one restored the count
        r = patch.amount(layer, x.shape[1])
        plan = None
        if r == 0 and tokens.size is None:
            y = super().forward(*args, **kwargs)
        else:
            if tokens.size is None:
                size = seed(given.get(patch.row.mask or ""))
                tokens = Tokens(size, padded=size is not None)
            along(patch.row, tokens, call.start, patch.prefix, given)
            collapses = patch.collapses(layer)
            tap = patch.tap(tokens, matches=r > 0 and not collapses)
            if r == 0:
                with tap:
                    y = super().forward(x, **given)
                _check_seen(tap)
            else:
                y = self.turbo_first(call, tap, x, given)
                if collapses:
                    plan = collapse(y.shape[0], y.shape[1], patch.prefix, y.device)
                else:
                    assert tap.metric is not None
                    plan = match(
                        tap.metric, tap.value, r, patch.prefix, patch.config, layer, tokens.real,
                        patch.guide,
                    )  # fmt: skip
                y, tokens = _merged(patch, tokens, y, plan)
                y = self.turbo_second(call, y, given)
        call.tokens = tokens
        if patch.recording:
            call.plans.append(plan)
        if tokens.owner is not None and layer in patch.restored:
            y = restore(y, tokens.owner)
        patch.leave(layer, call)
        return y

    def turbo_first(self, call: Call, tap: Tap, x: Tensor, given: dict[str, Any]) -> Tensor:
        """``x + attention(x)``, seen by the tap."""
        call.muted = self.turbo_site.patch.row.mlp
        try:
            with tap:
                y = super().forward(x, **given)
        finally:
            call.muted = ()
        _check_seen(tap)
        return y

    def turbo_second(self, call: Call, y: Tensor, given: dict[str, Any]) -> Tensor:
        """``y + mlp(y)``."""
        call.muted = self.turbo_site.patch.row.attention
        try:
            return super().forward(y, **given)
        finally:
            call.muted = ()


def _merged(patch: Patch, tokens: Tokens, y: Tensor, plan: Plan) -> tuple[Tensor, Tokens]:
    """Merge, and keep the books: sizes, and owners and positions where they are needed."""
    size = tokens.size
    if size is None:
        size = torch.ones(y.shape[:2], dtype=torch.float32, device=y.device)
    y, size = merge(y, size, plan)
    owner, position = tokens.owner, tokens.position
    if patch.tracks_owner:
        step = plan.representative()
        owner = step if owner is None else step.gather(1, owner)
    if patch.tracks_position:
        position = plan.keep if position is None else position.gather(1, plan.keep)
    return y, Tokens(size, tokens.padded, owner, position)


def _check_seen(tap: Tap) -> None:
    if tap.calls == 0:
        raise UnseenAttention(
            "no attention computation was seen in the block: its kernel hides the keys; load the "
            "model with attn_implementation='sdpa' (transformers) or fused_attn (timm)"
        )
