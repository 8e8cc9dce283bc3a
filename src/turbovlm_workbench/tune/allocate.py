"""How many tokens each block should remove, from what removing some costs in each block alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from turbovlm.maths.speedup import amounts

COMPOUND = 3
"""Drift grows with about this power of the share of its tokens that a block removes. Measured on
ViT-Ti/16: the pairs that are left late, when nearly half of the tokens go at once, are bad ones."""
MLP = 2 / 3
"""Share of a block's linear operations after the merge: the MLP's 8 C^2 of 12 C^2 per token."""
STEPS = 100  # in which the share of a block grows
MARGIN = 3
"""How many times its own time a merge has to save: a small one brings drift and little else."""
HALVINGS = 30  # of the interval in which a share is searched
LEAST = 1e-6  # of the highest cost: what a cost is taken to be at least


@dataclass(frozen=True)
class Stack:
    """The blocks that a schedule is for.

    Attributes:
        depth: number of blocks.
        tokens: length of the sequence, prefix tokens included.
        prefix: number of prefix tokens.
        collapse: whether the last MLP runs on the prefix and one token alone, see `Merge`.
        merge: time of a merge, in times of a block; it differs from device to device.
    """

    depth: int
    tokens: int
    prefix: int
    collapse: bool = False
    merge: float = 0.0

    def saved(self, rs: Sequence[int]) -> float:
        """The share of the blocks' linear operations that a schedule saves.

        Args:
            rs: tokens removed in each block.
        """
        left, work = self.tokens, 0.0
        for block, r in enumerate(rs):
            work += left * (1 - MLP)
            left -= r
            if self.collapse and block == self.depth - 1:
                left = self.prefix + 1
            work += left * MLP
        return 1 - work / (self.tokens * self.depth)

    def shares(self, steps: Mapping[int, int]) -> tuple[int, ...]:
        """Shares of the tokens that enter each block as numbers of tokens."""
        rs, tokens = [], self.tokens
        for block in range(self.depth):
            rs.append((tokens - self.prefix) * steps.get(block, 0) // STEPS)
            tokens -= rs[-1]
        return tuple(rs)


def allocate(costs: Mapping[int, float], share: float, stack: Stack) -> tuple[int, ...]:
    """A schedule that saves ``share`` of the work, greedily by drift per saved operation.

    Args:
        costs: of the blocks that may merge (from 0): drift over the cube of the share of its
            tokens that a block removes. Those whose merge would not save `MARGIN` times its own
            time get 0.
        share: of the blocks' linear operations, see `Stack.saved`; where every block removes half
            of its tokens already, the schedule saves less.
        stack: of blocks.
    """
    floor = LEAST * max(costs.values()) or 1.0
    steps = dict.fromkeys(costs, 0)
    rs = (0,) * stack.depth
    while stack.saved(rs) < share:
        worth: dict[int, float] = {}
        grown: dict[int, int] = {}
        for block, taken in steps.items():
            more = next_step(stack, steps, block)
            if more is not None:
                moved = max(costs[block], floor) * (more**COMPOUND - taken**COMPOUND)
                gained = stack.saved(stack.shares({**steps, block: more})) - stack.saved(rs)
                grown[block], worth[block] = more, gained / moved
        if not worth:
            break
        best = max(worth, key=lambda block: worth[block])
        steps[best] = grown[best]
        rs = stack.shares(steps)
    alone = {
        block: stack.saved(rs) - stack.saved((*rs[:block], 0, *rs[block + 1 :])) for block in costs
    }
    least_used = min(alone, key=lambda block: alone[block])
    if any(rs) and alone[least_used] < MARGIN * stack.merge / stack.depth and len(costs) > 1:
        rest = {block: cost for block, cost in costs.items() if block != least_used}
        fewer = allocate(rest, share, stack)
        return fewer if stack.saved(fewer) >= share else rs
    return rs


def next_step(stack: Stack, steps: Mapping[int, int], block: int) -> int | None:
    """The next larger step of a block that removes one more token there, if half allows one.

    Of fewer than 100 tokens a single step can be less than one.
    """
    now = stack.shares(steps)[block]
    more = range(steps[block] + 1, STEPS // 2 + 1)
    return next((n for n in more if stack.shares({**steps, block: n})[block] > now), None)


def one_share(share: float, blocks: tuple[int, ...], stack: Stack) -> tuple[int, ...]:
    """One share of the tokens in each of some blocks, as ``Merge(speedup=...)`` removes them.

    Args:
        share: of the blocks' linear operations, see `Stack.saved`.
        blocks: those that merge, from 0.
        stack: of blocks.

    Returns:
        The smallest such schedule that saves ``share``; half of the tokens where none does.
    """
    low, high = 0.0, 0.5
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        rs = amounts(middle, blocks, stack.tokens, stack.prefix, stack.depth)
        low, high = (low, middle) if stack.saved(rs) >= share else (middle, high)
    return amounts(high, blocks, stack.tokens, stack.prefix, stack.depth)


def even(share: float, stack: Stack) -> tuple[int, ...]:
    """The paper's schedule, the same r in every block, that saves at least ``share`` if one can."""
    r = 0
    most = (stack.tokens - stack.prefix) // (stack.depth + 1)  # the last block can remove it too
    while stack.saved((r,) * stack.depth) < share and r < most:
        r += 1
    return (r,) * stack.depth
