"""How many tokens each block should remove, from what removing some costs in each block alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

COMPOUND = 3
"""Drift grows with about this power of the share of its tokens that a block removes. Measured on
ViT-Ti/16: the pairs that are left late, when nearly half of the tokens go at once, are bad ones."""
MLP = 2 / 3
"""Share of a block's linear operations after the merge: the MLP's 8 C^2 of 12 C^2 per token."""
STEPS = 100  # in which the share of a block grows
WORTH = 0.015
"""Share of the operations that a merge has to save: it takes about half of that time itself."""
LEAST = 1e-6  # of the highest cost: what a cost is taken to be at least


def saved(rs: Sequence[int], tokens: int) -> float:
    """The share of the blocks' linear operations that a schedule saves.

    Args:
        rs: tokens removed in each block.
        tokens: length of the sequence, prefix tokens included.
    """
    left, work = tokens, 0.0
    for r in rs:
        work += left * (1 - MLP)
        left -= r
        work += left * MLP
    return 1 - work / (tokens * len(rs))


def allocate(
    costs: Mapping[int, float], share: float, depth: int, tokens: int, prefix: int
) -> tuple[int, ...]:
    """A schedule that saves ``share`` of the work, greedily by drift per saved operation.

    Args:
        costs: of the blocks that may merge (from 0): drift over the cube of the share of its
            tokens that a block removes. Those whose merge would not be worth its own time get 0.
        share: of the blocks' linear operations, see `saved`; where every block removes half of
            its tokens already, the schedule saves less.
        depth: number of blocks.
        tokens: length of the sequence, prefix tokens included.
        prefix: number of prefix tokens.
    """
    floor = LEAST * max(costs.values()) or 1.0
    steps = dict.fromkeys(costs, 0)
    rs = (0,) * depth
    while saved(rs, tokens) < share:
        worth: dict[int, float] = {}
        for block, taken in steps.items():
            if taken < STEPS // 2:
                more = _schedule({**steps, block: taken + 1}, depth, tokens, prefix)
                moved = max(costs[block], floor) * ((taken + 1) ** COMPOUND - taken**COMPOUND)
                worth[block] = (saved(more, tokens) - saved(rs, tokens)) / moved
        if not worth:
            break
        steps[max(worth, key=lambda block: worth[block])] += 1
        rs = _schedule(steps, depth, tokens, prefix)
    alone = {
        block: saved(rs, tokens) - saved((*rs[:block], 0, *rs[block + 1 :]), tokens)
        for block in costs
    }
    least_used = min(alone, key=lambda block: alone[block])
    if alone[least_used] < WORTH and len(costs) > 1:
        rest = {block: cost for block, cost in costs.items() if block != least_used}
        fewer = allocate(rest, share, depth, tokens, prefix)
        return fewer if saved(fewer, tokens) >= share else rs
    return rs


def _schedule(steps: Mapping[int, int], depth: int, tokens: int, prefix: int) -> tuple[int, ...]:
    """Shares of the tokens that enter each block as numbers of tokens."""
    rs = []
    for block in range(depth):
        rs.append((tokens - prefix) * steps.get(block, 0) // STEPS)
        tokens -= rs[-1]
    return tuple(rs)


def even(share: float, depth: int, tokens: int, prefix: int) -> tuple[int, ...]:
    """The paper's schedule, the same r in every block, that saves at least ``share`` if one can."""
    r = 0
    most = (tokens - prefix) // (depth + 1)  # so that the last block has as many left to remove
    while saved((r,) * depth, tokens) < share and r < most:
        r += 1
    return (r,) * depth
