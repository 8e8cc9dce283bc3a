"""A patched tower: what never changes while it is applied, and the call of a running forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from turbovlm.config import Merge
from turbovlm.errors import TurboError, UnsupportedInput
from turbovlm.maths.plan import Plan
from turbovlm.maths.schedule import Schedule, removed
from turbovlm.maths.score import MEAN_WEIGHT
from turbovlm.maths.speedup import BlockCost, schedule_for
from turbovlm.plug.attention import Look, Metric
from turbovlm.plug.encoder.mute import Muted
from turbovlm.plug.encoder.tokens import Tokens
from turbovlm.plug.encoder.trace import Trace
from turbovlm.plug.state import Patch
from turbovlm.plug.torch_private import in_backward

if TYPE_CHECKING:
    from turbovlm.plug.encoder.row import Guide, Row


@dataclass(frozen=True)
class Reading:
    """What is read of a forward, and what is known of its arguments.

    Attributes:
        every: after every block all positions are needed.
        layers: after these blocks they are.
        last: after the last one they are.
        padding: the masks of the blocks are made of a padding mask.
        decodes: this call is causal.
        images: tokens of each image of a packed sequence; nothing where that is not known.
    """

    every: bool = False
    layers: frozenset[int] = frozenset()
    last: bool = True
    padding: bool = False
    decodes: bool = False
    images: tuple[int, ...] = ()

    def needs(self, layer: int, depth: int) -> bool:
        """Whether all positions are read after this block of so many."""
        return self.every or layer in self.layers or (self.last and layer == depth - 1)

    def watching(self, layer: int) -> Reading:
        """The same with a hook that reads this block."""
        return replace(self, layers=self.layers | {layer})


UNDECLARED = Reading(every=True)
"""Blocks that run outside a forward of their tower: who reads them is not known."""


@dataclass(frozen=True)
class Snapshot:
    """What gradient checkpointing needs to run a block again."""

    tokens: Tokens | None
    full: bool
    reading: Reading
    plans: tuple[Plan | None, ...]


class EncoderCall:
    """The state of one forward through one tower.

    Attributes:
        reading: who reads what.
        declared: whether the tower's own forward runs, which ends the call.
        muted: stand-ins for children of the running block, while one branch is muted.
        tokens: what is known of the tokens that enter the running block; None before a merge.
        full: whether the block before handed on all positions although there were merges.
        plans: one per finished block, when recording.
        start: tokens at the first block; None before it.
        done: the last block that finished.
    """

    def __init__(self, reading: Reading, declared: bool) -> None:
        self.reading, self.declared = reading, declared
        self.muted: Mapping[str, nn.Module] | None = None
        self.tokens: Tokens | None = None
        self.full = False
        self.plans: list[Plan | None] = []
        self.start: int | None = None
        self.done = -1

    @property
    def snapshot(self) -> Snapshot:
        """What is known now, for when this is needed again."""
        return Snapshot(self.tokens, self.full, self.reading, tuple(self.plans))


@dataclass(frozen=True)
class TowerFacts:
    """What holds for one tower whatever runs.

    Attributes:
        depth: number of blocks.
        prefix: number of prefix tokens.
        guide: what supplies the semantic value.
        last: whether all positions are needed after the last block.
        around: whether a reader around the tower said so, whichever of its methods runs.
        cost: of a block, for ``Merge(speedup=...)``.
    """

    depth: int
    prefix: int
    guide: Guide
    last: bool
    around: bool
    cost: BlockCost


class EncoderPatch(Patch[Merge, EncoderCall, Snapshot]):
    """One patched tower.

    Args:
        row: what is known of towers of its class.
        config: what to merge.
        facts: of this tower.
        muted: what stands for the attention branch and for the MLP branch.
    """

    def __init__(
        self, row: Row, config: Merge, facts: TowerFacts, muted: tuple[Muted, Muted]
    ) -> None:
        super().__init__(config)
        self.row, self.facts = row, facts
        self.depth, self.prefix = facts.depth, facts.prefix
        rule, share = config.rule, MEAN_WEIGHT if facts.guide == "mean" else 1.0
        self.rules = tuple(replace(rule, block=n, share=share) for n in range(facts.depth))
        self.guide: Guide | None = facts.guide if rule.reads_value else None
        self.metric: Metric = "key" if config.preset is None else config.preset.metric
        self.attention_muted, self.mlp_muted = muted
        self._schedules: dict[int, Schedule] = {}
        self._fixed = None if config.speedup is not None else config.schedule

    def schedule(self, start: int) -> Schedule:
        """How many tokens go in which block, for sequences that start with this many."""
        if self._fixed is not None:
            return self._fixed
        assert self.config.speedup is not None
        found = self._schedules.get(start)
        if found is None:
            wanted = self.config.speedup
            amounts = schedule_for(wanted, start, self.prefix, self.depth, self.facts.cost)
            floor, collapse = self.config.min_tokens, self.config.collapse
            found = Schedule(amounts, min_tokens=floor, collapse=collapse)
            self._schedules[start] = found
        return found

    def amount(self, layer: int, start: int, tokens: int) -> int:
        """r of this block for this length."""
        return removed(self.schedule(start), layer, self.depth, tokens, self.prefix)

    def look(self, tokens: Tokens | None) -> Look:
        """What matching, or who observes, needs to see of the attention of these tokens."""
        guide = self.facts.guide if self.observers else self.guide
        return Look(self.metric, guide, None if tokens is None else tokens.real)

    def enter(
        self, layers: tuple[int, ...], x: Tensor, training: bool, watched: bool
    ) -> tuple[EncoderCall, int]:
        """The call that a block with input ``x`` ``(B, N, C)`` belongs to, and its layer.

        Args:
            layers: where the block stands; more than one where it is used again.
            x: its input.
            training: whether gradient checkpointing may run it again.
            watched: whether a hook reads its output; a checkpointed run keeps to this, also
                where the hook does not look again.
        """
        call = self.current()
        if call is not None and (call.declared or layers[0] > 0):
            layer = next((n for n in layers if n > call.done), layers[0])
            self._check(layer, call, x)
            if watched:
                call.reading = call.reading.watching(layer)
            if training and not torch.compiler.is_compiling():
                self.memory.keep(x, call.snapshot)
            return call, layer
        call = EncoderCall(UNDECLARED, declared=False)
        if torch.compiler.is_compiling():
            self.traced = call  # a trace runs the blocks in order
        else:
            self._recall(call, layers[0], x)
        self._check(layers[0], call, x)
        if watched:
            call.reading = call.reading.watching(layers[0])
        return call, layers[0]

    def _recall(self, call: EncoderCall, layer: int, x: Tensor) -> None:
        """Take up what is known of the tensor ``x``."""
        known = self.memory.find(x)
        if known is not None:
            call.tokens, call.full, call.reading = known.tokens, known.full, known.reading
            call.plans = list(known.plans)
        elif layer == 0:
            self.memory.sweep()
        elif in_backward():
            raise TurboError(
                f"gradient checkpointing runs block {layer} again on a tensor that is not the one "
                "it had: was it moved to another device in between? Do without offloading of "
                "checkpoints, or turbovlm.remove(model)"
            )

    def leave(self, layer: int, call: EncoderCall, y: Tensor) -> None:
        """End of a block; what runs outside its tower is found again by its output ``y``."""
        call.done = layer
        if call.declared:
            return
        last = layer == self.depth - 1
        if last and self.recorders:
            self.trace(call)
        if not torch.compiler.is_compiling():
            self.memory.keep(y, call.snapshot)
        elif last:
            self.traced = None

    def finish(self, call: EncoderCall) -> None:
        """End of the tower's forward.

        Raises:
            UnsupportedInput: if all positions are needed and the block that restores did not run.
        """
        if call.tokens is not None and call.reading.last and not call.full:
            raise UnsupportedInput(
                f"the last of the encoder's {self.depth} blocks did not run, so the merged tokens "
                "were not restored: after cutting blocks off, turbovlm.remove(model) and apply "
                "again; with LayerDrop set it to 0 (layerdrop, encoder_layerdrop)"
            )
        if self.recorders:
            self.trace(call)

    def trace(self, call: EncoderCall) -> None:
        """Hand what this forward merged to those who record it."""
        tokens = call.tokens
        self.record(
            Trace(
                call.start or 0,
                self.prefix,
                tuple(call.plans),
                None if tokens is None else tokens.size,
                None if tokens is None else tokens.order,
            )
        )

    def _check(self, layer: int, call: EncoderCall, x: Tensor) -> None:
        tokens = call.tokens
        if tokens is None:
            call.start = x.shape[-2]
            return
        call.start = tokens.start
        if tokens.size is not None and tokens.size.device != x.device:
            tokens = call.tokens = tokens.to(x.device)
        expected = tokens.start if call.full else tokens.length
        if x.shape[-2] != expected:
            raise UnsupportedInput(
                f"block {layer} got {x.shape[-2]} tokens where {expected} were left: something "
                "between the blocks adds, drops or reorders tokens; turbovlm.remove(model) before "
                "using that feature"
            )
