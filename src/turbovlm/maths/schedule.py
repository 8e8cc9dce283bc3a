"""How many tokens go in which block: r from lengths alone, never from data (static shapes)."""

from __future__ import annotations

from turbovlm.config import Merge
from turbovlm.errors import ConfigError


def removable(tokens: int, prefix: int) -> int:
    """The bipartite limit: at most half of the non-prefix tokens go in one block."""
    return max(0, (tokens - prefix) // 2)


def removed(config: Merge, block: int, depth: int, tokens: int, prefix: int) -> int:
    """Tokens that block ``block`` (from 0) of ``depth`` removes from ``tokens``.

    Args:
        config: the setting; its ``r``, ``ratio``, ``inflection``, floor and ``collapse`` decide.
        block: index of the block, from 0.
        depth: number of blocks.
        tokens: length of the sequence that enters the block, prefix tokens included.
        prefix: number of prefix tokens, which are never merged.
    """
    if config.collapse and block == depth - 1:
        return max(0, tokens - prefix - 1)
    wanted = min(_wanted(config, block, depth, tokens, prefix), removable(tokens, prefix))
    if config.floor_rule == "paper":
        # the released code looks at the length before the merge, so it can end below the floor
        return 0 if tokens < config.min_tokens else wanted
    return max(0, min(wanted, tokens - config.min_tokens))


def lengths(config: Merge, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
    """Sequence length after each of ``depth`` blocks, from ``tokens`` at the start."""
    after = []
    for block in range(depth):
        tokens -= removed(config, block, depth, tokens, prefix)
        after.append(tokens)
    return tuple(after)


def check_depth(config: Merge, depth: int) -> None:
    """Raise `ConfigError` when a per-block ``r`` does not have one entry for every block."""
    if isinstance(config.r, tuple) and len(config.r) != depth:
        raise ConfigError(
            f"r lists {len(config.r)} blocks but the model has {depth}: give {depth} integers, "
            "or one integer for all blocks"
        )


def _wanted(config: Merge, block: int, depth: int, tokens: int, prefix: int) -> int:
    if config.ratio is not None:
        return int(config.ratio * (tokens - prefix))
    if isinstance(config.r, tuple):
        return config.r[block]
    r = config.r or 0
    if not config.inflection or depth < 2:
        return r
    # difference of rounded cumulative sums: rounding never changes the total
    return _linear_total(r, config.inflection, block + 1, depth) - _linear_total(
        r, config.inflection, block, depth
    )


def _linear_total(r: int, inflection: float, blocks: int, depth: int) -> int:
    """Tokens removed by the first ``blocks`` blocks of the linear schedule."""
    line = inflection * (blocks * (blocks - 1) / (depth - 1) - blocks)
    return round(r * (blocks + line))
