"""How many tokens go in which block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from turbovlm import Merge
from turbovlm.errors import ConfigError
from turbovlm.maths import schedule
from turbovlm.maths.schedule import removed, removed_each


def lengths(config: Merge, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
    return schedule.lengths(config.schedule, tokens, prefix, depth)


def test_constant_r_until_half_is_the_limit() -> None:
    assert lengths(Merge(r=8), 197, 1, 12)[-1] == 197 - 96
    # 9 tokens: at most 4 of the 8 patches, then 2 of 4, then 1 of 2, then none of 1
    assert lengths(Merge(r=16), 9, 1, 5) == (5, 3, 2, 2, 2)


def test_nlvr_lengths_of_the_paper() -> None:
    # NUMBERS: 577 -> 157 at r = 35 and 42 at r = 45, where the bipartite limit bites at the end
    assert lengths(Merge(r=35), 577, 1, 12)[-1] == 157
    assert lengths(Merge(r=45), 577, 1, 12)[-1] == 42


def test_floor_rules_differ_as_documented() -> None:
    # the released code tests the length before the merge and ends below the threshold
    assert lengths(Merge.paper(6, min_tokens=20), 37, 1, 5) == (31, 25, 19, 19, 19)
    assert lengths(Merge(r=6, min_tokens=20), 37, 1, 5) == (31, 25, 20, 20, 20)


def test_a_floor_above_the_length_merges_nothing() -> None:
    assert lengths(Merge(r=6, min_tokens=300), 197, 1, 3) == (197, 197, 197)


def test_per_block_list() -> None:
    assert lengths(Merge(r=(3, 0, 2)), 20, 1, 3) == (17, 17, 15)
    with pytest.raises(ConfigError, match="lists 3 blocks but the model has 4"):
        schedule.check_depth(Merge(r=(3, 0, 2)).schedule, 4)


def test_ratio_is_of_the_patches_still_there() -> None:
    # 10 % of 100 patches, then of 90, then of 81 (rounded down)
    assert lengths(Merge(ratio=0.1), 101, 1, 3) == (91, 82, 74)


@pytest.mark.parametrize(
    ("inflection", "expected"), [(-1, [16, 12, 8, 4, 0]), (0, [8] * 5), (1, [0, 4, 8, 12, 16])]
)
def test_linear_schedule(inflection: float, expected: list[int]) -> None:
    after = lengths(Merge(r=8, inflection=inflection), 1001, 1, 5)
    assert [a - b for a, b in zip((1001, *after), after, strict=False)] == expected


@given(st.integers(0, 40), st.floats(-1, 1), st.integers(2, 40))
def test_inflection_never_changes_the_total(r: int, inflection: float, depth: int) -> None:
    after = lengths(Merge(r=r, inflection=inflection), 100_001, 1, depth)
    assert after[-1] == 100_001 - r * depth
    assert all(a >= b for a, b in zip((100_001, *after), after, strict=False))


@given(st.integers(0, 60), st.integers(2, 600), st.integers(0, 5), st.integers(0, 300))
def test_clamp_never_ends_below_the_floor(r: int, tokens: int, prefix: int, floor: int) -> None:
    after = lengths(Merge(r=r, min_tokens=floor), tokens, prefix, 6)
    assert after[-1] >= min(tokens, floor)
    assert after[-1] >= min(tokens, prefix)


def test_a_ratio_is_exact() -> None:
    # 0.29 * 100 is 28.999999999999996 in floating point
    assert lengths(Merge(ratio=0.29), 101, 1, 1) == (72,)


@given(
    st.one_of(
        st.builds(lambda r: Merge(r=r), st.integers(0, 30)),
        st.builds(lambda share: Merge(ratio=share), st.floats(0, 0.5)),
        st.builds(
            lambda r, floor: Merge(r=r, min_tokens=floor), st.integers(0, 30), st.integers(1, 60)
        ),
        st.just(Merge(r=4, collapse=True)),
    ),
    st.lists(st.integers(4, 80), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(0, 2),
)
def test_samples_of_a_padded_batch_remove_what_they_would_alone(
    config: Merge, counts: list[int], prefix: int, block: int
) -> None:
    plan, tokens = config.schedule, max(counts)
    each = removed_each(plan, block, 3, torch.tensor(counts)[:, None], prefix)[:, 0].tolist()
    assert each == [removed(plan, block, 3, count, prefix) for count in counts]
    left = tokens - removed(plan, block, 3, tokens, prefix)
    assert all(count - r <= left for count, r in zip(counts, each, strict=True))  # it fits
