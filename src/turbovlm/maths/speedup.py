"""From a wanted speed-up to the tokens that each block removes.

The cost of a block is counted in multiply-adds: ``N P + 2 N^2 C`` for N tokens, P weights and
attention width C. Merging happens after the attention, so that the block's MLP sees fewer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from turbovlm.errors import ConfigError
from turbovlm.maths.schedule import removable

MANY = 1.9
"""Above this speed-up the same r in every block keeps more than large merges in the middle: on
1000 photographs (ViT-Ti) the middle half loses 0.43 times the KL of a constant r at 1.36x, 0.81
times at 1.72x and 1.16 times at 2.02x."""

STEPS = 40
"""Halvings of the interval in which the share that a block removes is searched."""


@dataclass(frozen=True)
class BlockCost:
    """What a block costs.

    Attributes:
        attention: weights before the merge, P of the attention branch.
        mlp: weights after it.
        width: of the attention, C.
        few: whether every merge costs a fixed time (a GPU), so that few blocks should merge.
        attended: whether a decoder attends over what the encoder leaves.
    """

    attention: int
    mlp: int
    width: int
    few: bool = False
    attended: bool = False

    def of(self, before: int, after: int) -> float:
        """Multiply-adds of a block that gets ``before`` tokens and leaves ``after``."""
        return before * self.attention + 2 * before * before * self.width + after * self.mlp


def merging_blocks(depth: int, few: bool, attended: bool = False) -> tuple[int, ...]:
    """Which blocks merge, from 0: the middle half, or three of it where each merge costs much.

    Early blocks have not yet found out what matters, and late ones leave little to save. Where a
    decoder attends over all tokens, a twelfth of the depth earlier: blocks 3 to 8 of 12 lose 0.83
    and 0.77 times the KL of blocks 4 to 9 at 1.36x and 1.72x (ViT-Ti, captions of 500 photographs).
    """
    if depth < 4:
        return tuple(range(depth))
    earlier = depth // 12 if attended else 0
    if few:
        chosen = {depth // 4, depth // 2, 3 * depth // 4}
    else:
        chosen = set(range(depth // 4, depth - depth // 4))
    return tuple(sorted(block - earlier for block in chosen))


def amounts(
    share: float, blocks: tuple[int, ...], tokens: int, prefix: int, depth: int
) -> tuple[int, ...]:
    """r of every block, if each of ``blocks`` removes this share of the patches it gets."""
    found = []
    for block in range(depth):
        r = 0
        if block in blocks:
            r = min(round(share * (tokens - prefix)), removable(tokens, prefix))
        found.append(r)
        tokens -= r
    return tuple(found)


def constant(r: int, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
    """The same r in every block, as far as half of the patches allow it."""
    found = []
    for _ in range(depth):
        found.append(min(r, removable(tokens, prefix)))
        tokens -= found[-1]
    return tuple(found)


def speedup_of(removed: tuple[int, ...], tokens: int, cost: BlockCost) -> float:
    """How many times fewer multiply-adds the blocks need with these r."""
    whole, left = len(removed) * cost.of(tokens, tokens), 0.0
    for r in removed:
        left += cost.of(tokens, tokens - r)
        tokens -= r
    return whole / left


def schedule_for(
    speedup: float, tokens: int, prefix: int, depth: int, cost: BlockCost
) -> tuple[int, ...]:
    """The smallest r of every block that gives a speed-up by counted operations.

    Args:
        speedup: at least 1.
        tokens: that enter the first block, prefix tokens included.
        prefix: number of prefix tokens.
        depth: number of blocks.
        cost: of a block.

    Raises:
        ConfigError: if even half of the tokens in every block does not give it.
    """
    if speedup <= 1:
        return (0,) * depth
    if speedup > MANY:
        limit = removable(tokens, prefix)
        for r in range(1, limit + 1):
            found = constant(r, tokens, prefix, depth)
            if speedup_of(found, tokens, cost) >= speedup:
                return found
    best = 1.0
    half = merging_blocks(depth, False, cost.attended)
    for chosen in (merging_blocks(depth, cost.few, cost.attended), half, tuple(range(depth))):
        most = amounts(0.5, chosen, tokens, prefix, depth)
        reached = speedup_of(most, tokens, cost)
        best = max(best, reached)
        if reached >= speedup:
            return _search(speedup, chosen, tokens, prefix, depth, cost)
    raise ConfigError(
        f"speedup={speedup:g} is out of reach for {tokens} tokens in {depth} blocks: the most is "
        f"{best:.2f}"
    )


def _search(
    speedup: float, blocks: tuple[int, ...], tokens: int, prefix: int, depth: int, cost: BlockCost
) -> tuple[int, ...]:
    low, high = 0.0, 0.5
    for _ in range(STEPS):
        middle = (low + high) / 2
        found = amounts(middle, blocks, tokens, prefix, depth)
        if speedup_of(found, tokens, cost) >= speedup:
            high = middle
        else:
            low = middle
    return amounts(high, blocks, tokens, prefix, depth)
