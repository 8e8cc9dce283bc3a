"""Matching, merge and restore: hand-worked cases, and properties that hold for any input."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from turbovlm import Merge
from turbovlm.maths import match as matching
from turbovlm.maths.match import Padding, nearest, unit_rows
from turbovlm.maths.merge import LOG_EMPTY, merge, restore, size_bias
from turbovlm.maths.plan import Plan
from turbovlm.maths.schedule import removable
from turbovlm.maths.sets import EvenOdd, EvenOddWithin

REDUNDANCY = Merge(r=1, method="redundancy")


def match(
    metric: Tensor,
    value: Tensor | None,
    r: int,
    prefix: int,
    config: Merge,
    padding: Padding | None = None,
) -> Plan:
    """What the second block of an encoder plans."""
    sets, rule = EvenOdd(metric.shape[1], prefix), replace(config.rule, block=1)
    return matching.match(unit_rows(metric), value, r, sets, rule, padding).plan


def angles(*degrees: float) -> Tensor:
    """Unit vectors in the plane, so that cosines can be read off the angles: ``(1, N, 2)``."""
    radians = [math.radians(d) for d in degrees]
    return torch.tensor([[[math.cos(a), math.sin(a)] for a in radians]])


def test_hand_worked_merge() -> None:
    # position    0 cls  1   2   3   4    5     sources 2 and 4, destinations 1, 3 and 5
    metric = angles(0, 0, 10, 90, 85, 180)
    redundancy, partner = nearest(metric, EvenOdd(6, 1))
    torch.testing.assert_close(
        redundancy, torch.tensor([[math.cos(math.radians(10)), math.cos(math.radians(5))]])
    )
    assert partner.tolist() == [[0, 1]]  # 2 -> position 1, 4 -> position 3
    plan = match(metric, None, 1, 1, REDUNDANCY)
    assert (plan.source.tolist(), plan.destination.tolist()) == ([[4]], [[3]])
    assert plan.keep.tolist() == [[0, 1, 2, 3, 5]]
    assert plan.slot.tolist() == [[3]]
    assert plan.representative().tolist() == [[0, 1, 2, 3, 3, 4]]
    x = torch.arange(6.0).view(1, 6, 1)
    size = torch.tensor([[1.0, 1.0, 1.0, 2.0, 6.0, 1.0]])
    y, sizes = merge(x, size, plan)
    assert y.flatten().tolist() == [0, 1, 2, (2 * 3 + 6 * 4) / 8, 5]
    assert sizes.tolist() == [[1, 1, 1, 8, 1]]


def test_two_sources_into_one_destination() -> None:
    metric = angles(200, 0, 1, 90, 2, 180)
    plan = match(metric, None, 2, 1, REDUNDANCY)
    assert sorted(plan.source[0].tolist()) == [2, 4]
    assert plan.destination.tolist() == [[1, 1]]
    x = torch.tensor([[[0.0], [10.0], [20.0], [30.0], [60.0], [50.0]]])
    y, sizes = merge(x, torch.ones(1, 6), plan)
    assert y.flatten().tolist() == pytest.approx([0, 30, 30, 50])  # (10 + 20 + 60) / 3
    assert sizes.tolist() == [[1, 3, 1, 1]]


def test_semantic_value_protects_a_redundant_token() -> None:
    metric = angles(0, 0, 0, 90, 85, 180)  # token 2 equals token 1, token 4 is merely close to 3
    value = torch.tensor([[0.0, 0.0, 0.2, 0.0, 0.001, 0.0]])
    assert match(metric, None, 1, 1, REDUNDANCY).source.tolist() == [[2]]
    assert match(metric, value, 1, 1, Merge(r=1, alpha=1)).source.tolist() == [[4]]


@pytest.mark.parametrize(
    ("prefix", "sources", "destinations"),
    [
        (0, [0, 2, 4, 6], [1, 3, 5]),
        (1, [2, 4, 6], [1, 3, 5]),
        (2, [2, 4, 6], [3, 5]),
        (3, [4, 6], [3, 5]),
    ],
)
def test_partition_is_by_parity_of_the_whole_sequence(
    prefix: int, sources: list[int], destinations: list[int]
) -> None:
    sets, positions = EvenOdd(7, prefix), torch.arange(7)[None]
    assert sets.sources(positions)[0].tolist() == sources
    assert sets.destinations(positions)[0].tolist() == destinations
    assert (sets.source_count, sets.destination_count) == (len(sources), len(destinations))
    assert sets.source_positions(torch.arange(len(sources))).tolist() == sources
    assert sets.destination_positions(torch.arange(len(destinations))).tolist() == destinations


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = torch.randn(2, 61, 8, generator=torch.Generator().manual_seed(0))
    whole = nearest(unit_rows(metric), EvenOdd(61, 1))
    monkeypatch.setattr(matching, "TILE_SOURCES", 10)
    monkeypatch.setattr(matching, "TILE_ROWS", 7)
    tiled = nearest(unit_rows(metric), EvenOdd(61, 1))
    assert torch.equal(whole[1], tiled[1])
    torch.testing.assert_close(whole[0], tiled[0])


def test_a_padded_sample_merges_what_it_would_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    metric, value = (
        torch.randn(1, 21, 6, generator=generator),
        torch.rand(1, 21, generator=generator),
    )
    x = torch.randn(1, 21, 4, generator=generator)
    for method in ("turbo", "redundancy", "semantics", "random"):
        config = Merge(r=3, method=method)
        alone = match(metric[:, :13], value[:, :13], 3, 1, config)
        expected, sizes = merge(x[:, :13], None, alone)
        padding = Padding(torch.tensor([[13]]), torch.tensor([[3]]))
        plan = match(metric, value, 5, 1, config, padding)
        size = (torch.arange(21) < 13).float()[None]
        y, total = merge(x, size, plan)
        torch.testing.assert_close(y[:, :10], expected)
        assert torch.equal(total[:, :10], sizes)
        assert total[:, 10:].sum() == 0
        assert y.shape[1] == 16


def test_pairs_stay_inside_segments() -> None:
    """By hand, s d s | d s | d: the best pair of all, 70 and 71 degrees, is in two segments."""
    unit = angles(0, 20, 70, 71, 40, 41)
    within = torch.tensor([[0, 0, 0, 1, 1, 2]])
    sets = EvenOddWithin(6, within=within)
    redundancy, partner = nearest(unit, sets)
    expected = [math.cos(math.radians(a)) for a in (20, 50, 31)]
    torch.testing.assert_close(redundancy, torch.tensor([expected]))
    assert partner.tolist() == [[0, 0, 1]]
    rule = REDUNDANCY.rule
    assert matching.match(unit, None, 1, sets, rule).plan.source.tolist() == [[0]]
    plan = matching.match(unit, None, 3, sets, rule).plan
    assert plan.keep.tolist() == [[1, 3, 5]]
    assert matching.match(unit, None, 1, EvenOdd(6), rule).plan.source.tolist() == [[2]]


@pytest.mark.parametrize("method", ["turbo", "redundancy", "random"])
def test_segments_in_tiles_and_at_random(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    unit = unit_rows(torch.randn(2, 40, 8, generator=generator))
    value = torch.rand(2, 40, generator=generator) / 40
    cuts = torch.rand(2, 40, generator=generator) < 0.3
    within = cuts.cumsum(1)
    sets, rule = EvenOddWithin(40, within=within), Merge(r=1, method=method).rule
    r = int((nearest(unit, sets)[0] > -torch.inf).sum(1).min())
    found = matching.match(unit, value, r, sets, rule).plan
    assert r > 10
    assert torch.equal(within.gather(1, found.source), within.gather(1, found.destination))
    assert (found.source % 2 == 0).all()
    assert (found.destination % 2 == 1).all()
    monkeypatch.setattr(matching, "TILE_SOURCES", 1)
    monkeypatch.setattr(matching, "TILE_ROWS", 7)
    tiled = matching.match(unit, value, r, sets, rule).plan
    assert torch.equal(tiled.source, found.source)
    assert torch.equal(tiled.destination, found.destination)


def test_the_order_of_the_released_code_puts_even_survivors_first() -> None:
    metric = angles(0, 0, 10, 90, 85, 180)
    plan = match(metric, None, 1, 1, Merge.paper(1, method="redundancy"))
    assert plan.source.tolist() == [[4]]
    assert plan.keep.tolist() == [[0, 2, 1, 3, 5]]  # 4 went into 3, which now stands at 3
    assert plan.slot.tolist() == [[3]]
    assert plan.representative().tolist() == [[0, 2, 1, 3, 3, 4]]


def test_log_of_padding_is_finite_and_vanishes() -> None:
    bias = size_bias(torch.tensor([[1.0, 4.0, 0.0]]))
    torch.testing.assert_close(bias, torch.tensor([[0.0, math.log(4), LOG_EMPTY]]))
    assert bias.half().isfinite().all()
    assert bias.softmax(-1)[0, 2] == 0


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, int, int, int, str]:
    prefix = draw(st.integers(0, 5))
    tokens = draw(st.integers(prefix + 2, 40))
    r = draw(st.integers(1, removable(tokens, prefix)))
    method = draw(st.sampled_from(["turbo", "redundancy", "semantics", "random"]))
    return tokens, prefix, r, draw(st.integers(0, 2**20)), method


@given(problems())
@settings(max_examples=120, deadline=None)
def test_properties_of_every_merge(problem: tuple[int, int, int, int, str]) -> None:
    tokens, prefix, r, seed, method = problem
    generator = torch.Generator().manual_seed(seed)
    metric = torch.randn(3, tokens, 4, generator=generator)
    value = torch.rand(3, tokens, generator=generator)
    config = Merge(r=r, method=method, alpha=0.1 if method == "turbo" else None)
    plan = match(metric, value, r, prefix, config)
    x = torch.randn(3, tokens, 5, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 9, (3, tokens), generator=generator).float()
    y, sizes = merge(x, size, plan)

    assert y.shape == (3, tokens - r, 5)
    assert torch.equal(sizes.sum(1), size.sum(1))  # mass is conserved
    torch.testing.assert_close(  # so is the size-weighted mean
        (y * sizes.unsqueeze(-1)).sum(1), (x * size.unsqueeze(-1)).sum(1), atol=1e-5, rtol=1e-6
    )
    assert torch.equal(y[:, :prefix], x[:, :prefix])  # prefix tokens are untouched
    assert torch.equal(sizes[:, :prefix], size[:, :prefix])
    for keep, source, goal in zip(plan.keep, plan.source, plan.destination, strict=True):
        assert keep.tolist() == sorted(set(range(tokens)) - set(source.tolist()))
        assert len(set(source.tolist())) == r
        assert all(s % 2 == 0 and s >= prefix for s in source.tolist())
        assert all(d % 2 == 1 and d >= prefix for d in goal.tolist())
    back = plan.representative()
    full = restore(y, back)
    assert full.shape == x.shape
    for row in range(3):  # each group's size is what its members brought
        mass = Counter[int]()
        for token, owner in enumerate(back[row].tolist()):
            mass[owner] += int(size[row, token])
        assert [mass[i] for i in range(tokens - r)] == sizes[row].tolist()
    untouched = torch.ones(3, tokens, dtype=torch.bool)
    untouched.scatter_(1, plan.source, False).scatter_(1, plan.destination, False)
    assert torch.equal(full[untouched], x[untouched])
