"""How many tokens go in which block: r from lengths alone, never from data (static shapes)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from turbovlm.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """What a configuration says of amounts; see `turbovlm.Merge` for the fields."""

    r: int | tuple[int, ...] | None = None
    ratio: float | None = None
    inflection: float = 0.0
    min_tokens: int = 0
    paper_floor: bool = False
    collapse: bool = False

    def collapses(self, block: int, depth: int) -> bool:
        """Whether this block lets all tokens but the prefix become one."""
        return self.collapse and block == depth - 1

    def wanted(self, block: int, depth: int, patches: int) -> int:
        """Tokens that block ``block`` of ``depth`` should remove of ``patches``, before limits."""
        if self.ratio is not None:
            # integers: a compiler simplifies products of symbolic lengths, not roundings of them
            share = Fraction(self.ratio).limit_denominator(1_000_000)
            return patches * share.numerator // share.denominator
        if isinstance(self.r, tuple):
            return self.r[block]
        r = self.r or 0
        if not self.inflection or depth < 2:
            return r
        # difference of rounded cumulative sums: rounding never changes the total
        return self._linear_total(r, block + 1, depth) - self._linear_total(r, block, depth)

    def _linear_total(self, r: int, blocks: int, depth: int) -> int:
        """Tokens removed by the first ``blocks`` blocks of the linear schedule."""
        line = self.inflection * (blocks * (blocks - 1) / (depth - 1) - blocks)
        return round(r * (blocks + line))


def removable(tokens: int, prefix: int) -> int:
    """The bipartite limit: at most half of the non-prefix tokens go in one block."""
    return max(0, (tokens - prefix) // 2)


def removed(schedule: Schedule, block: int, depth: int, tokens: int, prefix: int) -> int:
    """Tokens that block ``block`` (from 0) of ``depth`` removes from ``tokens``.

    Args:
        schedule: its r or ratio, floor and ``collapse`` decide.
        block: index of the block, from 0.
        depth: number of blocks.
        tokens: length of the sequence that enters the block, prefix tokens included.
        prefix: number of prefix tokens, which are never merged.
    """
    if schedule.collapses(block, depth):
        return max(0, tokens - prefix - 1)
    wanted = schedule.wanted(block, depth, tokens - prefix)
    if wanted == 0:
        return 0
    wanted = min(wanted, removable(tokens, prefix))
    if schedule.paper_floor:
        # the released code looks at the length before the merge, so it can end below the floor
        return 0 if tokens < schedule.min_tokens else wanted
    if not schedule.min_tokens:
        return wanted
    return max(0, min(wanted, tokens - schedule.min_tokens))


def removed_each(schedule: Schedule, block: int, depth: int, count: Tensor, prefix: int) -> Tensor:
    """`removed` for samples of different lengths.

    Args:
        schedule: as in `removed`.
        block: as in `removed`.
        depth: as in `removed`.
        count: ``(B, 1)`` int64 tokens of each sample that are not padding.
        prefix: number of prefix tokens.

    Returns:
        ``(B, 1)`` int64. No sample's exceeds that of a longer one by more than the difference in
        length, so that what is left always fits; but for the paper's floor, where samples follow
        the length of the batch.
    """
    patches = (count - prefix).clamp_min(0)
    if schedule.collapses(block, depth):
        return (patches - 1).clamp_min(0)
    if schedule.ratio is not None:
        share = Fraction(schedule.ratio).limit_denominator(1_000_000)
        wanted = patches * share.numerator // share.denominator
    else:
        wanted = torch.full_like(count, schedule.wanted(block, depth, 0))
    wanted = torch.minimum(wanted, patches // 2)
    if not schedule.min_tokens or schedule.paper_floor:
        return wanted
    return torch.minimum(wanted, (count - schedule.min_tokens).clamp_min(0))


def lengths(schedule: Schedule, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
    """Sequence length after each of ``depth`` blocks, from ``tokens`` at the start."""
    after = []
    for block in range(depth):
        tokens -= removed(schedule, block, depth, tokens, prefix)
        after.append(tokens)
    return tuple(after)


def check_depth(schedule: Schedule, depth: int) -> None:
    """Raise `ConfigError` when a per-block ``r`` does not have one entry for every block."""
    if isinstance(schedule.r, tuple) and len(schedule.r) != depth:
        raise ConfigError(
            f"r lists {len(schedule.r)} blocks but the model has {depth}: give {depth} integers, "
            "or one integer for all blocks"
        )
