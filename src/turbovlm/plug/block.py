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

from turbovlm.errors import UnseenAttention, UnsupportedInput
from turbovlm.maths.matching import match
from turbovlm.maths.merging import merge, restore, size_bias
from turbovlm.plug.state import Call, Patch
from turbovlm.plug.tap import Tap


@dataclass(frozen=True)
class Site:
    """Where a block stands: its tower's patch, its index and the class it had."""

    patch: Patch
    layer: int
    host: type[nn.Module]
    tokens_name: str


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
            ``(B, N - r, C)``; ``(B, N0, C)`` from the last block of a tower that restores.

        Raises:
            UnsupportedInput: for a mask or table laid out along tokens, which merging breaks.
            UnseenAttention: if the attention kernel hides its inputs.
        """
        site = self.turbo_site
        patch, layer = site.patch, site.layer
        args = args or (kwargs.pop(site.tokens_name),)
        x, args = args[0], args[1:]
        call = patch.enter(layer, x, self.training or torch.is_grad_enabled())
        r = patch.amount(layer, x.shape[1])
        plan = None
        if r == 0 and call.size is None:
            y = super().forward(x, *args, **kwargs)
        else:
            _refuse_tensors(args, kwargs)
            tap = patch.tap(None if call.size is None else size_bias(call.size), r)
            if r == 0:
                with tap:
                    y = super().forward(x, *args, **kwargs)
                _check_seen(tap)
            else:
                y = self.turbo_first(call, tap, x, args, kwargs)
                assert tap.metric is not None
                plan = match(tap.metric, tap.value, r, patch.prefix, patch.config, layer)
                if call.size is None:
                    call.size = torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)
                y, call.size = merge(y, call.size, plan)
                if patch.restores:
                    step = plan.representative()
                    call.owner = step if call.owner is None else step.gather(1, call.owner)
                y = self.turbo_second(call, y, args, kwargs)
        if patch.recording:
            call.plans.append(plan)
        if call.owner is not None and layer == patch.depth - 1:
            y = restore(y, call.owner)
        patch.leave(layer, call)
        return y

    def turbo_first(
        self, call: Call, tap: Tap, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """``x + attention(x)``, seen by the tap."""
        call.muted = self.turbo_site.patch.row.mlp
        try:
            with tap:
                y = super().forward(x, *args, **kwargs)
        finally:
            call.muted = ()
        _check_seen(tap)
        return y

    def turbo_second(
        self, call: Call, y: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """``y + mlp(y)``."""
        call.muted = self.turbo_site.patch.row.attention
        try:
            return super().forward(y, *args, **kwargs)
        finally:
            call.muted = ()


def _refuse_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            raise UnsupportedInput(
                f"the block got an extra tensor of shape {tuple(value.shape)} (a mask?), which "
                "would not follow the merged tokens: call the model without it, or "
                "turbovlm.remove(model)"
            )


def _check_seen(tap: Tap) -> None:
    if tap.calls == 0:
        raise UnseenAttention(
            "no attention computation was seen in the block: its kernel hides the keys; load the "
            "model with attn_implementation='sdpa' (transformers) or fused_attn (timm)"
        )
