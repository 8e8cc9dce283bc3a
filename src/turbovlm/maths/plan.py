"""A plan: which tokens of a sequence are merged into which others, and who survives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from turbovlm.maths.constants import positions


@dataclass(frozen=True)
class Plan:
    """What one merge does. Positions index the sequence of ``tokens`` that enters it.

    Attributes:
        source: ``(B, r)`` positions merged away.
        destination: ``(B, r)`` positions they are merged into.
        keep: ``(B, N - r)`` surviving positions in their new order: ascending, unless `complete`
            was given another.
        slot: ``(B, r)`` where each source's destination stands among the survivors.
        tokens: N.
    """

    source: Tensor
    destination: Tensor
    keep: Tensor
    slot: Tensor
    tokens: int

    def representative(self) -> Tensor:
        """``(B, N)``: the position among the survivors that stands for each token."""
        batch, kept = self.keep.shape
        place = self.keep.new_zeros(batch, self.tokens)
        place.scatter_(1, self.keep, torch.arange(kept, device=place.device).expand(batch, -1))
        return place.scatter_(1, self.source, self.slot)


def complete(
    source: Tensor, destination: Tensor, tokens: int, order: Tensor | None = None
) -> tuple[Plan, Tensor]:
    """A whole plan from the pairs; static shapes, no sort and no ``nonzero``.

    Args:
        source: ``(B, r)`` positions merged away.
        destination: ``(B, r)`` positions they are merged into.
        tokens: N.
        order: ``(N,)`` positions in the order that survivors shall have; None keeps theirs.

    Returns:
        The plan, and ``(B, N)`` int64 where each survivor stands among the survivors, from 1.
    """
    batch, r = source.shape
    device = source.device
    alive = source.new_ones(batch, tokens).scatter_(1, source, 0)
    if order is not None:
        rank = torch.empty_like(alive).index_copy_(1, order, alive[:, order].cumsum(1))
    else:
        rank = alive.cumsum(1)
    # survivors write their position to their rank, the merged ones to a spare first column
    keep = source.new_empty(batch, tokens - r + 1)
    keep.scatter_(1, rank * alive, positions(0, tokens, 1, device).expand(batch, -1))
    return Plan(source, destination, keep[:, 1:], rank.gather(1, destination) - 1, tokens), rank


def collapsed(batch: int, tokens: int, prefix: int, device: torch.device) -> Plan:
    """All tokens behind the prefix go into the first of them, unmatched."""
    everyone = torch.arange(tokens, device=device).expand(batch, -1)
    source = everyone[:, prefix + 1 :]
    only = torch.full_like(source, prefix)
    return Plan(source, only, everyone[:, : prefix + 1], only, tokens)
