"""look, best and plan: one by one against torch, and together against `match`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreted.make import assert_same, assert_valid, keys
from turbovlm.kernels import choose_tokens, ops, plain
from turbovlm.kernels.triton.best import launch_best as best
from turbovlm.kernels.triton.look import launch_look as look
from turbovlm.kernels.triton.plan import launch_plan as kernel_plan
from turbovlm.maths.match import Padding, Rule, match, unit_rows
from turbovlm.maths.plan import Plan
from turbovlm.maths.score import find_score, semantic_value
from turbovlm.maths.sets import EvenOdd

WIDTHS = (16, 24, 32, 40, 64, 72, 80, 88, 96, 128, 256)
Amounts = tuple[int, int, int]


@pytest.fixture(autouse=True)
def only_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch path may not compute what a kernel should."""

    def refused(*_: object) -> None:
        raise AssertionError("torch computed in the place of a kernel")

    for name in ("look", "best", "merge"):
        monkeypatch.setattr(f"turbovlm.kernels.ops.plain.torch_{name}", refused)


torch_look, torch_best = plain.torch_look, plain.torch_best


def planned(
    score: Tensor,
    partner: Tensor,
    logits: Tensor | None,
    amounts: Amounts,
    weight: tuple[float | None, float] = (None, 1.0),
    padding: tuple[Tensor, Tensor] | None = None,
) -> Plan:
    """The kernel's plan, checked for being one, and equal to torch's."""
    found = Plan(*kernel_plan(score, partner, logits, amounts, weight, padding), amounts[1])
    expected = Plan(*plain.torch_plan(score, partner, logits, amounts, weight, padding), amounts[1])
    if padding is None:
        assert_valid(found, amounts[1], amounts[0])
        assert torch.equal(found.source, found.source.sort(dim=1).values)
    assert_same(found, expected)
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_look_in_fp32(width: int) -> None:
    k, row, bias = keys(2, 2, 35, width), torch.randn(2, 2, width), torch.rand(2, 35)
    unit, logits = look(k, row, bias, width**-0.5)
    expected = torch_look(k, row, bias, width**-0.5)
    torch.testing.assert_close(unit, expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(logits, expected[1], atol=1e-5, rtol=0)
    assert (logits - torch_look(k, row, None, width**-0.5)[1]).abs().max() > 0.1


def test_look_without_a_row_or_bias() -> None:
    k, row = keys(2, 2, 35, 24), torch.randn(2, 2, 24)
    unit, logits = look(k, row, None, 0.2)
    torch.testing.assert_close(logits, torch_look(k, row, None, 0.2)[1], atol=1e-5, rtol=0)
    alone, nothing = look(k, None, None, 1.0)
    assert nothing.shape == (2, 0, 35)
    assert torch.equal(alone, unit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_look_in_half_precision_is_fp32_inside(dtype: torch.dtype) -> None:
    k, row = keys(2, 3, 35, 72).to(dtype), torch.randn(2, 3, 72).to(dtype)
    unit, logits = look(k, row, None, 0.1)
    expected = torch_look(k.float(), row.float(), None, 0.1)
    assert unit.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(unit, expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(logits, expected[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (2, 2), (6, 33)])
def test_look_with_grouped_heads_and_strides(heads: int, tokens: int) -> None:
    k = keys(3, heads, tokens, 24)
    row = torch.randn(3, 6, 24)
    bias = torch.rand(1, tokens).expand(3, -1)
    layouts = {
        "packed": (k, row),
        "heads first": (k.contiguous(), row.transpose(1, 2).contiguous().transpose(1, 2)),
        "one sample": (k[:1].expand(3, -1, -1, -1), row[:1].expand(3, -1, -1)),
        "width outermost": (k.transpose(-1, -2).contiguous().transpose(-1, -2), row),
    }
    for k, row in layouts.values():
        unit, logits = look(k, row, bias, 0.2)
        expected = torch_look(k, row, bias, 0.2)
        torch.testing.assert_close(unit, expected[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(logits, expected[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", WIDTHS)
def test_best_at_every_width(width: int) -> None:
    unit = unit_rows(torch.randn(2, 39, width))
    value, index = best(unit, 1, None)
    expected = torch_best(unit, 1, None)
    torch.testing.assert_close(value, expected[0], atol=1e-5, rtol=0)
    assert torch.equal(index, expected[1])
    assert index.unique().numel() > 3


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("extra", [2, 3, 36, 133])
def test_best_at_every_length(prefix: int, extra: int) -> None:
    unit = unit_rows(torch.randn(2, prefix + extra, 16))
    value, index = best(unit, prefix, None)
    expected = torch_best(unit, prefix, None)
    torch.testing.assert_close(value, expected[0], atol=1e-5, rtol=0)
    assert torch.equal(index, expected[1])


def test_best_takes_the_lowest_of_equals() -> None:
    # eighths, whose products are exact: in any order of summation equals stay equal
    unit = torch.randn(1, 150, 16).mul(8).round().div(8)
    unit[:, 9::20] = unit[:, 9:10]  # destinations 4, 14, 24, ... within and across tiles
    unit[:, 2::2] = 8 * unit[:, 9:10] + unit[:, 2::2].sign() / 8
    _, index = best(unit, 1, None)
    assert (index == 4).all()
    assert torch.equal(index, torch_best(unit, 1, None)[1])


def test_best_skips_padding() -> None:
    unit = unit_rows(torch.randn(4, 20, 16))
    count = torch.tensor([[20], [11], [3], [1]])
    value, index = best(unit, 1, count)
    expected = torch_best(unit, 1, count)
    torch.testing.assert_close(value, expected[0], atol=1e-5, rtol=0)
    assert torch.equal(index, expected[1])
    assert (value[3] == -torch.inf).all()
    assert not torch.equal(index[1], best(unit, 1, None)[1][1])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bad_numbers_stay_in_their_sample_and_give_a_valid_plan(bad: float) -> None:
    k, row = keys(3, 2, 40, 24), torch.randn(3, 2, 24)
    unit, logits = look(k, row, None, 0.2)
    clean = best(unit, 1, None)
    k[1, 0, 5:9] = bad
    k[2] = bad
    unit, logits = look(k, row, None, 0.2)
    value, index = best(unit, 1, None)
    assert torch.equal(value[0], clean[0][0])
    assert torch.equal(index[0], clean[1][0])
    assert (index >= 0).all()
    assert (index < 20).all()
    for weight in ((None, 1.0), (6.0, 1.0)):
        found = kernel_plan(value, index, logits, (12, 40, 1), weight, None)
        assert_valid(Plan(*found, 40), 40, 12)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("patches", [2, 3, 7, 36, 133])
def test_plan_at_every_length(prefix: int, patches: int) -> None:
    tokens = prefix + patches
    sets = EvenOdd(tokens, prefix)
    redundancy = torch.rand(3, sets.source_count) * 2 - 1
    partner = torch.randint(0, sets.destination_count, redundancy.shape, dtype=torch.int32)
    logits = torch.randn(3, 2, tokens) * 3
    planned(redundancy, partner, logits, (patches // 2, tokens, prefix))
    planned(redundancy, partner, None, (max(1, patches // 5), tokens, prefix))


@pytest.mark.parametrize("weight", [(None, 1.0), (None, 0.2), (6.0, 1.0), (0.1, 1.0)])
def test_plan_weighs_the_semantic_value(weight: tuple[float | None, float]) -> None:
    redundancy = torch.rand(4, 30) * 0.2 + 0.8
    partner = torch.randint(0, 30, (4, 30), dtype=torch.int32)
    logits = torch.randn(4, 3, 61) * 2
    found = planned(redundancy, partner, logits, (10, 61, 1), weight)
    without = planned(redundancy, partner, None, (10, 61, 1))
    assert not torch.equal(found.source, without.source)


def test_plan_takes_heads_in_several_tiles() -> None:
    redundancy = torch.rand(1, 600)
    partner = torch.randint(0, 600, (1, 600), dtype=torch.int32)
    planned(redundancy, partner, torch.randn(1, 19, 1200) * 4, (100, 1200, 0), (6.0, 1.0))


def test_plan_breaks_ties_by_the_lowest_index() -> None:
    partner = torch.zeros(2, 20, dtype=torch.int32)
    degree = torch.zeros(2, 20)
    degree[0, 2] = -0.0  # equal to 0, whatever its bits say
    degree[1, 5::5] = 0.5
    found = planned(degree, partner, None, (6, 40, 0))
    assert found.source.tolist() == [[0, 2, 4, 6, 8, 10], [0, 2, 4, 10, 20, 30]]


def test_plan_puts_nan_and_inf_in_torch_order() -> None:
    degree = torch.tensor([[0.5, torch.inf, -torch.inf, torch.nan, -1.0, 0.7, -2.0, 0.6]])
    partner = torch.zeros(1, 8, dtype=torch.int32)
    for r, expected in ((1, [6]), (2, [2, 6]), (3, [2, 6, 10]), (7, [0, 2, 6, 8, 10, 12, 14])):
        assert planned(degree, partner, None, (r, 16, 0)).source.tolist() == [expected]
    bits = degree.view(torch.int32).clone()
    bits[0, 3] = -4194304  # NaN with its sign set
    assert planned(bits.view(torch.float32), partner, None, (1, 16, 0)).source.tolist() == [[6]]


def test_every_degree_equal_nan_or_inf_gives_a_plan() -> None:
    partner = torch.zeros(1, 20, dtype=torch.int32)
    for value in (torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e-45):
        planned(torch.full((1, 20), value), partner, None, (9, 40, 0))


@pytest.mark.parametrize("fitted", [True, False])
def test_plan_with_padding(fitted: bool) -> None:
    tokens, r = 33, 10
    count = torch.tensor([[33], [30], [15], [23], [2]])
    removed = torch.tensor([[10], [10], [4], [0], [0]])
    unit = unit_rows(torch.randn(5, tokens, 16))
    logits = torch.randn(5, 2, tokens) * 3
    logits.masked_fill_((torch.arange(tokens) >= count).unsqueeze(1), -1e4)
    redundancy, partner = best(unit, 1, count)
    weight = (None if fitted else 6.0, 1.0)
    found = planned(redundancy, partner, logits, (r, tokens, 1), weight, (count, removed))
    rule = Rule(find_score("turbo"), weight[0])
    padding = Padding(count, removed)
    value = semantic_value(logits)
    expected = match(unit, value, r, EvenOdd(tokens, 1), rule, padding)
    assert_same(found, expected.plan)
    assert torch.equal(found.source[3], torch.arange(32, 22, -1))


def test_padding_without_prefix_tokens_points_at_a_survivor() -> None:
    unit = unit_rows(torch.randn(2, 16, 16))
    unit[1, 0] = unit[1, 1]  # so that the first token is merged away
    count, removed = torch.tensor([[16], [9]]), torch.tensor([[5], [2]])
    score, partner = best(unit, 0, count)
    score = score.masked_fill(torch.arange(0, 16, 2) >= count, -torch.inf)
    found = planned(score, partner, None, (5, 16, 0), padding=(count, removed))
    assert found.source[1, 0] == 0
    assert (found.slot >= 0).all()


@pytest.mark.parametrize("method", ["turbo", "redundancy", "semantics"])
@pytest.mark.parametrize("weight", [(None, 1.0), (0.3, 1.0), (None, torch.tensor([[0.5]]))])
def test_choose_plans_what_match_plans(
    method: str, weight: tuple[float | None, float | Tensor]
) -> None:
    k, row = keys(3, 2, 41, 24), torch.randn(3, 4, 24) * 3
    bias = torch.randint(1, 5, (3, 41)).float().log()
    alpha, share = weight
    sets, rule = EvenOdd(41, 1), Rule(find_score(method), alpha, share=share)
    unit, logits = look(k, row, bias, 0.2)
    found = choose_tokens(unit, logits, 12, sets, rule)
    expected = match(unit, semantic_value(logits), 12, sets, rule)
    assert_valid(found, 41, 12)
    assert_same(found, expected.plan)
    for other in {"turbo", "redundancy", "semantics"} - {method}:
        plan = choose_tokens(unit, logits, 12, sets, Rule(find_score(other)))
        assert not torch.equal(found.source, plan.source)


@pytest.mark.parametrize("method", ["turbo", "redundancy", "semantics"])
def test_choose_with_padding(method: str) -> None:
    unit, logits = look(keys(2, 2, 21, 16), torch.randn(2, 2, 16), None, 0.25)
    padding = Padding(torch.tensor([[21], [14]]), torch.tensor([[6], [3]]))
    sets, rule = EvenOdd(21, 1), Rule(find_score(method))
    found = choose_tokens(unit, logits, 6, sets, rule, padding)
    expected = match(unit, semantic_value(logits), 6, sets, rule, padding)
    assert_same(found, expected.plan)


def test_choose_without_a_guide_and_without_tokens_to_remove() -> None:
    unit, _ = look(keys(2, 2, 21, 16), None, None, 1.0)
    sets = EvenOdd(21, 1)
    for rule in (Rule(find_score("redundancy")), Rule(find_score("turbo"), alpha=0.0)):
        found = choose_tokens(unit, None, 7, sets, rule)
        assert_same(found, match(unit, None, 7, sets, rule).plan)
    nothing = choose_tokens(unit, None, 0, sets, Rule(find_score("redundancy")))
    assert_valid(nothing, 21, 0)


def test_random_pairs_and_the_released_order_are_those_of_match() -> None:
    unit, logits = look(keys(2, 2, 21, 16), torch.randn(2, 2, 16), None, 0.25)
    sets = EvenOdd(21, 1)
    random = Rule(find_score("random"), seed=3, block=2)
    for rule in (random, Rule(find_score("turbo"), 6.0, released_order=True)):
        expected = match(unit, semantic_value(logits), 6, sets, rule)
        assert_same(choose_tokens(unit, logits, 6, sets, rule), expected.plan)


def test_a_sequence_that_one_program_cannot_hold_is_planned_by_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    degree, partner = torch.rand(1, 30), torch.zeros(1, 30, dtype=torch.int32)
    expected = ops.make_plan(degree, partner, None, (7, 60, 0))
    monkeypatch.setattr("turbovlm.kernels.triton.plan.launch_plan", None)
    monkeypatch.setattr("turbovlm.kernels.ops.MOST_SOURCES", 29)
    assert_same(ops.make_plan(degree, partner, None, (7, 60, 0)), expected)
