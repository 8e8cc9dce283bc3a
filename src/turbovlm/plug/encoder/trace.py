"""What one forward merged: tokens per block, survivors, and who represents each original token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from turbovlm.maths.plan import Plan
from turbovlm.notebook import html_table


@dataclass(frozen=True)
class BlockRecord:
    """What one block of an encoder saw: what `turbovlm.recording` hands to ``observe``.

    A sample is an image, also where a tower packs the images of a batch in one sequence.

    Attributes:
        block: index, from 0.
        prefix_tokens: how many tokens lead the sequence and are never merged.
        tokens: ``(B, N, C)`` after the attention and its residual, before the merge.
        value: ``(B, N)`` fp32 the guide's semantic value A (Eq. 8), whether it is used or not.
        size: ``(B, N)`` fp32 how many original tokens each one stands for, 0 for padding; None
            while that is 1 for all.
        plan: what this block merges, None for nothing.
    """

    block: int
    prefix_tokens: int
    tokens: Tensor
    value: Tensor
    size: Tensor | None
    plan: Plan | None


@dataclass(frozen=True)
class Trace:
    """The merges of one forward through one tower.

    Attributes:
        start: tokens that entered the first block, N0.
        prefix_tokens: how many of them lead the sequence and are never merged.
        plans: one per block, None where a block merged nothing.
        sizes: ``(B, M)`` fp32 size of each token after the last block; None if nothing merged.
        order: ``(B, N0)`` original positions in the order that the first plan speaks of: real
            tokens before padding. None without padding.
    """

    start: int
    prefix_tokens: int
    plans: tuple[Plan | None, ...]
    sizes: Tensor | None
    order: Tensor | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """Sequence length after each block."""
        length, after = self.start, []
        for plan in self.plans:
            length = length if plan is None else plan.keep.shape[1]
            after.append(length)
        return tuple(after)

    @property
    def removed(self) -> tuple[int, ...]:
        """Tokens that each block removed."""
        after = self.tokens
        return tuple(a - b for a, b in zip((self.start, *after), after, strict=False))

    def _repr_html_(self) -> str:
        """In a notebook: what each block took."""
        rows = [
            (block, gone, left)
            for block, (gone, left) in enumerate(zip(self.removed, self.tokens, strict=True), 1)
        ]
        lead = f", {self.prefix_tokens} of them never merged" if self.prefix_tokens else ""
        note = f"{self.start} tokens enter the first block{lead}"
        return html_table("Trace", ("block", "removed", "tokens left"), rows, note)

    def representative(self, blocks: int | None = None) -> Tensor:
        """For each original token, which token of the sequence after ``blocks`` blocks (all of
        them by default) stands for it: ``(B, N0)`` int64. ``(1, N0)`` if nothing merged.
        """
        owner = torch.arange(self.start).unsqueeze(0) if self.order is None else inverse(self.order)
        for plan in self.plans[:blocks]:
            if plan is not None:
                step = plan.representative()
                owner = step.gather(1, owner.to(step.device).expand(step.shape[0], -1))
        return owner

    def survivors(self, blocks: int | None = None) -> Tensor:
        """Original positions of the tokens left after ``blocks`` blocks: ``(B, M)``."""
        position = torch.arange(self.start).unsqueeze(0) if self.order is None else self.order
        for plan in self.plans[:blocks]:
            if plan is not None:
                position = position.to(plan.keep.device).expand(plan.keep.shape[0], -1)
                position = position.gather(1, plan.keep)
        return position


def inverse(order: Tensor) -> Tensor:
    """The inverse of permutations ``(B, N)``: where each position went."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
