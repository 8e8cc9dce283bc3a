"""What a patched tower remembers: the setting, and the state of the forward that is running."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbovlm.config import Merge
from turbovlm.errors import TurboError, UnsupportedInput
from turbovlm.maths.information import needs_guide
from turbovlm.maths.matching import Plan
from turbovlm.maths.merging import size_bias
from turbovlm.maths.schedule import removed
from turbovlm.plug.mute import Mute, Pass
from turbovlm.plug.row import Guide, Row
from turbovlm.plug.tap import Tap
from turbovlm.plug.trace import Trace

REMEMBERED_FORWARDS = 8
"""Forwards whose sizes are kept for gradient checkpointing, which runs blocks a second time."""


@dataclass(frozen=True)
class Tokens:
    """What is known of the tokens between two blocks.

    Attributes:
        size: ``(B, N)`` fp32 how many original tokens each one stands for, 0 for padding; None
            before the first merge.
        padded: whether there is padding among them.
        owner: ``(B, N0)`` who stands for each original token; kept only where it is restored.
        position: ``(B, N)`` original positions; kept only where something follows the survivors.
    """

    size: Tensor | None = None
    padded: bool = False
    owner: Tensor | None = None
    position: Tensor | None = None

    @property
    def real(self) -> Tensor | None:
        """``(B, N)`` bool, False for padding; None where there is none."""
        return None if self.size is None or not self.padded else self.size > 0


class Call:
    """The state of one forward through one tower.

    Attributes:
        muted: children of the running block that stand still at this moment.
        tokens: what is known of the tokens that enter the running block.
        plans: one per finished block, when recording.
        start: tokens at the first block, N0.
        done: the last block that finished.
        entries: input address and tokens of every block, for gradient checkpointing.
    """

    def __init__(self, start: int) -> None:
        self.muted: tuple[str, ...] = ()
        self.tokens = Tokens()
        self.plans: list[Plan | None] = []
        self.start = start
        self.done = -1
        self.entries: dict[int, tuple[int, Tokens]] = {}


class Patch:
    """One patched tower: immutable facts, plus the running call of each thread."""

    def __init__(
        self,
        row: Row,
        config: Merge,
        *,
        depth: int,
        prefix: int,
        guide: Guide,
        restored: frozenset[int],
        extras: int | None,
    ) -> None:
        self.row, self.config, self.depth = row, config, depth
        self.prefix, self.restored = prefix, restored
        self.guide: Guide | None = guide if needs_guide(config) else None
        self.tracks_owner = bool(restored)
        self.tracks_position = bool(row.follow or restored - {depth - 1})
        if row.post_norm:
            attention, rest = Pass(extras), Pass(None)
            self._mutes = dict.fromkeys(row.attention, attention) | dict.fromkeys(row.mlp, rest)
        else:
            self._mutes = {n: Mute(None) for n in row.attention[1:] + row.mlp}
            self._mutes[row.attention[0]] = Mute(extras)
        self.recording = False
        self.trace: Trace | None = None
        self.traced: Call | None = None
        self._threads = threading.local()
        self._past: deque[Call] = deque(maxlen=REMEMBERED_FORWARDS)

    def mute(self, name: str) -> Mute | Pass:
        """The stand-in for the child ``name`` of a block."""
        return self._mutes[name]

    def amount(self, layer: int, tokens: int) -> int:
        """r of this block for this length."""
        return removed(self.config, layer, self.depth, tokens, self.prefix)

    def collapses(self, layer: int) -> bool:
        """Whether this block lets all tokens but the prefix become one."""
        return self.config.collapse and layer == self.depth - 1

    def tap(self, tokens: Tokens, matches: bool) -> Tap:
        """The tap for one block: full when the block matches, else only the bias."""
        bias = None if tokens.size is None else size_bias(tokens.size)
        if not matches:
            return Tap(bias, None, None)
        return Tap(bias, self.guide, self.config.metric, tokens.real)

    def current(self) -> Call | None:
        """The call that this thread (or the tracing compiler) is running."""
        if torch.compiler.is_compiling():
            return self.traced
        return getattr(self._threads, "call", None)

    @contextmanager
    def running(self, call: Call) -> Iterator[None]:
        """Make ``call`` this thread's own, outside a forward of the whole tower."""
        self._threads.call = call
        try:
            yield
        finally:
            self._threads.call = None

    def enter(self, layer: int, x: Tensor, training: bool) -> Call:
        """The call that block ``layer`` with input ``x`` ``(B, N, C)`` belongs to."""
        if torch.compiler.is_compiling():
            if layer == 0:
                self.traced = Call(x.shape[1])
            call = self.traced
        elif torch._C._current_graph_task_id() != -1:  # inside a backward: checkpointing
            call = self._threads.call = self._recall(layer, x)
        else:
            if layer == 0:
                self._threads.call = Call(x.shape[1])
                if training:
                    self._past.append(self._threads.call)
            call = self.current()
            if call is not None and training:
                call.entries[layer] = (x.data_ptr(), call.tokens)
        if call is None:
            raise TurboError(
                f"block {layer} ran without the blocks before it in the same forward, so the token "
                "sizes are unknown: run the whole encoder, or turbovlm.remove(model) first"
            )
        self._check(layer, call, x)
        return call

    def leave(self, layer: int, call: Call) -> None:
        """End of a block; after the last one nothing of the forward stays but the trace."""
        call.done = layer
        if layer != self.depth - 1:
            return
        if self.recording:
            self.trace = Trace(call.start, self.prefix, tuple(call.plans), call.tokens.size)
        if torch.compiler.is_compiling():
            self.traced = None
        else:
            self._threads.call = None

    def _recall(self, layer: int, x: Tensor) -> Call:
        """The state that the block had when it ran first.

        Found by the address of its input: checkpointing holds that tensor until now, so no
        other forward can have had the same one since.
        """
        for past in reversed(self._past):
            address, tokens = past.entries.get(layer, (0, Tokens()))
            if address == x.data_ptr():
                call = Call(past.start)
                call.tokens = tokens
                return call
        running = self.current()
        if running is not None and running.done == layer - 1:
            return running  # a checkpointed segment of several blocks
        raise TurboError(
            f"gradient checkpointing runs block {layer} again for a forward that is no longer "
            f"remembered (the last {REMEMBERED_FORWARDS} with gradients are): call backward sooner"
        )

    def _check(self, layer: int, call: Call, x: Tensor) -> None:
        size = call.tokens.size
        if size is None or size.shape == x.shape[:2]:
            return
        if layer - 1 in self.restored and x.shape[:2] == (size.shape[0], call.start):
            return
        raise UnsupportedInput(
            f"the block got tokens of shape {tuple(x.shape[:2])} after a merge that left "
            f"{tuple(size.shape)}: something between the blocks adds, drops or reorders "
            "tokens; turbovlm.remove(model) before using that feature"
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(self.__dict__)
        for running in ("_threads", "_past", "trace", "traced"):
            kept.pop(running)
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.trace, self.traced = None, None
        self._threads = threading.local()
        self._past = deque(maxlen=REMEMBERED_FORWARDS)
