"""What is known of the tokens between two blocks: their sizes, and where they come from."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from turbovlm.maths.merge import size_bias, take
from turbovlm.maths.plan import Plan
from turbovlm.plug.encoder.trace import inverse


class Tokens:
    """The tokens of one forward after some merges.

    Attributes:
        start: tokens that entered the first block, N0.
        plans: the merges so far.
        size: ``(B, N)`` fp32 how many original tokens each one stands for, 0 for padding; None
            while that is 1 for all.
        bias: ``(B, N)`` fp32 log size, or None.
        count: ``(B, 1)`` int64 tokens of each sample that are real, which come first; None
            without padding.
        order: ``(B, N0)`` original positions in the order of the first plan, or None.
    """

    def __init__(self, start: int, size: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.start = start
        self.plans: tuple[Plan, ...] = ()
        self.size = size
        self.bias = size_bias(size) if bias is None and size is not None else bias
        self.count: Tensor | None = None
        self.order: Tensor | None = None
        self._owner: tuple[int, Tensor | None] = 0, None
        self._position: tuple[int, Tensor | None] = 0, None

    @classmethod
    def padded(cls, real: Tensor, prefix: int) -> Tokens:
        """Tokens some of which are padding: real ones come first, in their order.

        So a sample's partition does not depend on the padding of its batch, whichever side it is
        on: the prefix are the first real tokens. The first tokens, one more than the prefix,
        always count as real: a sample must not be empty.

        Args:
            real: ``(B, N)`` bool.
            prefix: number of prefix tokens.
        """
        order = real.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        count = real.sum(1, keepdim=True).clamp_min(prefix + 1)
        places = torch.arange(real.shape[1], device=real.device)
        tokens = cls(real.shape[1], (places < count).float())
        tokens.count = count
        tokens.order = order
        tokens._owner, tokens._position = (0, inverse(order)), (0, order)
        return tokens

    def _like(self, size: Tensor | None, bias: Tensor | None = None) -> Self:
        """Other sizes of the same sequence."""
        return type(self)(self.start, size, bias)

    @property
    def real(self) -> Tensor | None:
        """``(B, N)`` bool, False for padding; None where there is none."""
        if self.count is None or self.size is None:
            return None
        return torch.arange(self.size.shape[1], device=self.size.device) < self.count

    @property
    def length(self) -> int:
        """N."""
        return self.start if self.size is None else self.size.shape[1]

    def after(self, plan: Plan, size: Tensor, bias: Tensor, removed: Tensor | None) -> Self:
        """The tokens after one more merge.

        Args:
            plan: the merge.
            size: ``(B, N - r)`` fp32 that it left.
            bias: their logarithms.
            removed: ``(B, 1)`` how many real tokens each sample lost; None without padding.
        """
        tokens = self._like(size, bias)
        tokens.plans = (*self.plans, plan)
        tokens.order = self.order
        tokens._owner, tokens._position = self._owner, self._position
        if self.count is not None and removed is not None:
            tokens.count = self.count - removed
        return tokens

    def owner(self) -> Tensor | None:
        """``(B, N0)`` which token stands for each original one; None before a merge."""
        done, owner = self._owner
        for plan in self.plans[done:]:
            step = plan.representative()
            owner = step if owner is None else step.gather(1, owner)
        self._owner = len(self.plans), owner
        return owner

    def position(self) -> Tensor | None:
        """``(B, N)`` original positions; None where nothing moved."""
        done, position = self._position
        for plan in self.plans[done:]:
            position = plan.keep if position is None else position.gather(1, plan.keep)
        self._position = len(self.plans), position
        return position

    def select(self, x: Tensor) -> Tensor:
        """The survivors ``(B, N, C)`` of a full sequence ``(B, N0, C)``."""
        position = self.position()
        return x if position is None else take(x, position)

    def restore(self, y: Tensor) -> Tensor:
        """The full sequence ``(B, N0, C)`` from the survivors ``(B, N, C)``."""
        owner = self.owner()
        return y if owner is None else take(y, owner)

    def to(self, device: torch.device) -> Self:
        """The same on another device, where a tower is split over several."""
        moved = self._like(None if self.size is None else self.size.to(device))
        moved.plans = tuple(
            Plan(
                p.source.to(device),
                p.destination.to(device),
                p.keep.to(device),
                p.slot.to(device),
                p.tokens,
            )
            for p in self.plans
        )
        moved.count = None if self.count is None else self.count.to(device)
        moved.order = None if self.order is None else self.order.to(device)
        if moved.order is not None:
            moved._owner, moved._position = (0, inverse(moved.order)), (0, moved.order)
        return moved
