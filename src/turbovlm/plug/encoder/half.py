"""The host's own forward, whole or with one branch muted, while its attention is watched."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import UnseenAttention
from turbovlm.plug.attention import Attention
from turbovlm.plug.encoder.mute import Muted
from turbovlm.plug.encoder.state import EncoderCall
from turbovlm.plug.segments import SegmentMode
from turbovlm.plug.swap import class_without, host_forward

NOTHING = Muted({})
Watch = Attention | SegmentMode


def run_half(
    block: nn.Module,
    call: EncoderCall,
    muted: Muted,
    x: Tensor,
    given: dict[str, Any],
    *,
    watch: tuple[str, Watch] | None = None,
) -> Tensor:
    """The host's forward of ``block`` on tokens ``x`` ``(B, N, C)``.

    Args:
        block: a patched block.
        call: the running one.
        muted: the children that are muted.
        x: the tokens.
        given: the other arguments.
        watch: name of the attention child, and how to watch its attention.

    Raises:
        UnseenAttention: if the attention was hidden from ``watch``.
    """
    if torch.compiler.is_compiling():
        y = _traced(block, call, muted, x, given, watch)
    else:
        children: dict[str, Any] = muted.calls
        if watch is not None:
            name, attention = watch
            children = {**children, name: Watched(block._modules[name], attention)}
        shadow = _shadow(block, children)
        y = type(shadow).forward(shadow, x, **given)
    if watch is not None:
        check_seen(watch[1])
    return y


class Watched:
    """A child whose attention is watched while it runs."""

    __slots__ = ("attention", "child")

    def __init__(self, child: Any, attention: Watch) -> None:
        self.child, self.attention = child, attention

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the child returns."""
        with self.attention:
            return self.child(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.child, name)


def check_seen(attention: Watch) -> None:
    """Raise `UnseenAttention` where no attention was computed while the mode was open."""
    if attention.calls == 0:
        raise UnseenAttention(
            "no attention computation was seen in the block: its kernel hides the keys; load the "
            "model with attn_implementation='sdpa' (transformers) or fused_attn (timm)"
        )


def _shadow(block: nn.Module, children: dict[str, Any]) -> nn.Module:
    """The block with other children, for one call: what it holds is shared, and it is not changed.

    Two threads may run one block at a time, so its own children must stay where they are.
    """
    cls = _plain(type(block))
    shadow = object.__new__(cls)
    state = shadow.__dict__
    state.update(block.__dict__)
    state["gradient_checkpointing"] = False  # the block itself is what transformers runs again
    if children:
        state["_modules"] = {**block._modules, **children}
    return shadow


_plain = functools.cache(class_without)


def _traced(
    block: nn.Module,
    call: EncoderCall,
    muted: Muted,
    x: Tensor,
    given: dict[str, Any],
    watch: tuple[str, Watch] | None,
) -> Tensor:
    """The same for a compiler, which cannot follow a shadow: the block answers for its children."""
    call.muted = muted.modules
    try:
        if watch is None:
            return host_forward(block)(block, x, **given)
        with watch[1]:
            return host_forward(block)(block, x, **given)
    finally:
        call.muted = None
