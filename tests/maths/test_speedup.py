"""From a wanted speed-up to r of every block."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turbovlm.errors import ConfigError
from turbovlm.maths.speedup import (
    MANY,
    BlockCost,
    amounts,
    constant,
    merging_blocks,
    schedule_for,
    speedup_of,
)

WIDTH = 192
COST = BlockCost(4 * WIDTH**2, 8 * WIDTH**2, WIDTH)  # ViT-Ti
FEW = BlockCost(4 * WIDTH**2, 8 * WIDTH**2, WIDTH, few=True)


def test_a_block_by_hand() -> None:
    # 10 tokens through 100 weights of attention and its 2 x 10 x 10 x 5, then 6 through 200
    assert BlockCost(100, 200, 5).of(10, 6) == 10 * 100 + 2 * 100 * 5 + 6 * 200
    # two blocks, the first removes 4: (3200 + 3200) of 4000 + 4000 ... counted out
    cost = BlockCost(100, 200, 0)
    whole = 2 * (10 * 100 + 10 * 200)
    assert speedup_of((4, 0), 10, cost) == whole / (10 * 100 + 6 * 200 + 6 * 100 + 6 * 200)


def test_the_middle_half_or_three_of_it() -> None:
    assert merging_blocks(12, few=False) == (3, 4, 5, 6, 7, 8)
    assert merging_blocks(12, few=True) == (3, 6, 9)
    assert merging_blocks(24, few=True) == (6, 12, 18)
    assert merging_blocks(2, few=False) == (0, 1)
    # a decoder attends over all tokens: a twelfth of the depth earlier
    assert merging_blocks(12, few=False, attended=True) == (2, 3, 4, 5, 6, 7)
    assert merging_blocks(12, few=True, attended=True) == (2, 5, 8)
    assert merging_blocks(24, few=False, attended=True) == tuple(range(4, 16))
    assert merging_blocks(4, few=False, attended=True) == (1, 2)


def test_vit_ti() -> None:
    assert schedule_for(1.37, 197, 1, 12, COST) == (0, 0, 0, 20, 18, 16, 14, 13, 12, 0, 0, 0)
    assert schedule_for(1.37, 197, 1, 12, FEW) == (0, 0, 0, 41, 0, 0, 32, 0, 0, 25, 0, 0)
    assert schedule_for(1.0, 197, 1, 12, COST) == (0,) * 12
    read = replace(COST, attended=True)
    assert schedule_for(1.36, 197, 1, 12, read) == (0, 0, 16, 15, 14, 12, 11, 11, 0, 0, 0, 0)


def test_large_speedups_merge_the_same_in_every_block() -> None:
    expected = constant(16, 197, 1, 12)
    assert expected[:11] == (16,) * 11  # 21 tokens enter the last block, half of 20 may go
    assert schedule_for(2.05, 197, 1, 12, COST) == expected
    assert schedule_for(2.05, 197, 1, 12, FEW) == expected
    assert speedup_of(constant(15, 197, 1, 12), 197, COST) < 2.05 < speedup_of(expected, 197, COST)
    assert MANY < 2.05
    # half of the patches is the limit of every block
    assert constant(30, 61, 1, 3) == (30, 15, 7)


def test_out_of_reach_says_what_is_in_reach() -> None:
    with pytest.raises(ConfigError, match=r"speedup=40 is out of reach .* the most is \d+\.\d\d"):
        schedule_for(40, 197, 1, 12, COST)


@given(
    st.floats(1.01, 1.9),
    st.integers(40, 2000),
    st.integers(0, 5),
    st.integers(4, 40),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_the_least_that_reaches_it(
    wanted: float, tokens: int, prefix: int, depth: int, few: bool
) -> None:
    cost = FEW if few else COST
    found = schedule_for(wanted, tokens, prefix, depth, cost)
    assert speedup_of(found, tokens, cost) >= wanted
    left = tokens
    for r in found:
        assert 0 <= r <= (left - prefix) // 2
        left -= r
    blocks = tuple(i for i, r in enumerate(found) if r)
    first = found[blocks[0]]
    share = (first - 1.6) / (tokens - prefix)  # visibly less in every block falls short
    less = amounts(max(share, 0.0), blocks, tokens, prefix, depth)
    assert sum(less) < sum(found)
    assert speedup_of(less, tokens, cost) < wanted or first <= 2
