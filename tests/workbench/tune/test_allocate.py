from __future__ import annotations

import dataclasses

import pytest

from turbovlm.config import Merge
from turbovlm.maths.schedule import lengths
from turbovlm.maths.speedup import merging_blocks
from turbovlm_workbench.tune.allocate import MARGIN, Stack, allocate, even, one_share

VIT = Stack(depth=12, tokens=197, prefix=1)


def test_savings_by_hand() -> None:
    two = Stack(depth=2, tokens=9, prefix=1)
    # 9 tokens, 2 blocks; the first removes 3 after its attention, a third of its work: of 18
    # units of work it saves 2/3 * 3, and the second block 3
    assert two.saved((3, 0)) == pytest.approx(5 / 18)
    assert two.saved((0, 3)) == pytest.approx(2 / 18)
    assert two.saved((0, 0)) == 0


@pytest.mark.parametrize("share", [0.03, 0.1, 0.25, 0.4])
def test_the_share_is_reached_within_a_step_and_blocks_can_merge_it(share: float) -> None:
    costs = {block: 1.0 / (block + 1) for block in range(0, 11, 2)}
    rs = allocate(costs, share, VIT)
    assert share <= VIT.saved(rs) < share + 0.012
    assert all(r == 0 for block, r in enumerate(rs) if block % 2)
    # the schedule that `apply` follows is this one: nothing is clamped
    assert lengths(Merge(r=rs).schedule, 197, 1, 12)[-1] == 197 - sum(rs)


def test_dear_blocks_remove_less() -> None:
    cheap = allocate({2: 1.0, 6: 1.0}, 0.2, VIT)
    dear = allocate({2: 100.0, 6: 1.0}, 0.2, VIT)
    assert 0 < dear[2] < cheap[2]
    assert dear[6] > cheap[6]


def test_free_blocks_come_first_and_earlier_ones_of_equal_cost_remove_more() -> None:
    rs = allocate({0: 1.0, 5: 0.0}, 0.1, VIT)
    assert rs[0] < 10 < rs[5]
    equal = allocate({0: 1.0, 9: 1.0}, 0.1, VIT)
    assert equal[0] > equal[9]
    assert sum(allocate({0: 0.0, 1: 0.0}, 0.1, VIT)) > 0


def test_more_than_half_never_goes() -> None:
    rs = allocate({0: 1.0}, 0.9, VIT)
    assert rs == (98, *[0] * 11)


def test_few_tokens_are_spread_over_blocks_too() -> None:
    """A hundredth of 49 tokens is less than one."""
    small = Stack(depth=6, tokens=50, prefix=1)
    rs = allocate(dict.fromkeys(range(5), 1.0), 0.2, small)
    assert small.saved(rs) >= 0.2
    assert sum(map(bool, rs)) > 2


def test_the_papers_schedule() -> None:
    assert even(0.25, VIT) == (8,) * 12  # r=8 saves 25.04 %
    assert VIT.saved((7,) * 12) < 0.25 <= VIT.saved((8,) * 12)
    most = even(0.99, VIT)
    assert lengths(Merge(r=most).schedule, 197, 1, 12)[-1] == 197 - sum(most)


def test_a_collapsed_end_by_hand() -> None:
    # of the last block's MLP, two thirds of its 9 units, 2 tokens are left
    two = Stack(depth=2, tokens=9, prefix=1, collapse=True)
    assert two.saved((0, 0)) == pytest.approx(2 / 3 * 7 / 18)
    assert two.saved((3, 0)) == pytest.approx((2 / 3 * 3 + 1 / 3 * 3 + 2 / 3 * 7) / 18)
    assert allocate({0: 1.0, 1: 1.0}, 0.2, two) == (0, 0)  # saved already


def test_a_merge_that_saves_hardly_more_than_it_takes_is_left_out() -> None:
    costs = dict.fromkeys(range(12), 1.0)
    rs = allocate(costs, 0.1, dataclasses.replace(VIT, merge=0.14))
    used = [block for block, r in enumerate(rs) if r]
    assert 1 < len(used) < 6
    for block in used:
        without = (*rs[:block], 0, *rs[block + 1 :])
        assert VIT.saved(rs) - VIT.saved(without) >= MARGIN * 0.14 / 12
    # where a merge takes no time all blocks are used, and where it takes much only one is
    assert sum(map(bool, allocate(costs, 0.1, VIT))) > len(used)
    assert sum(map(bool, allocate(costs, 0.1, dataclasses.replace(VIT, merge=9.0)))) == 1


@pytest.mark.parametrize("few", [False, True])
def test_one_share_in_the_blocks_of_a_speedup(few: bool) -> None:
    blocks = merging_blocks(12, few)
    rs = one_share(0.2, blocks, VIT)
    assert [block for block, r in enumerate(rs) if r] == list(blocks)
    assert 0.2 <= VIT.saved(rs) < 0.203
    tokens = 196
    for block in blocks:
        assert rs[block] / tokens == pytest.approx(rs[blocks[0]] / 196, abs=1 / tokens)
        tokens -= rs[block]
    assert one_share(0.9, (0,), VIT) == (98, *[0] * 11)
