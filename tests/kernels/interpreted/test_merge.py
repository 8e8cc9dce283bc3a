from __future__ import annotations

import pytest
import torch
from torch import Tensor

from turbovlm.kernels import merge_tokens as dispatched
from turbovlm.kernels import plain
from turbovlm.kernels.triton.merge import launch_merge as kernel
from turbovlm.maths.merge import take
from turbovlm.maths.plan import Plan, collapsed, complete
from turbovlm.maths.sets import EvenOdd


def random_plan(batch: int, tokens: int, r: int, prefix: int = 1) -> Plan:
    sets = EvenOdd(tokens, prefix)
    chosen = torch.rand(batch, sets.source_count).argsort(1)[:, :r]
    goals = torch.randint(0, max(1, sets.destination_count // 2), (batch, r))
    source, destination = sets.first_source + 2 * chosen, sets.first_destination + 2 * goals
    return complete(source, destination, tokens)[0]


def merged(
    x: Tensor, size: Tensor | None, plan: Plan, branch: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return kernel(x, branch, size, (plan.source, plan.slot, plan.keep))


def assert_equal(
    found: tuple[Tensor, ...], expected: tuple[Tensor, ...], atol: float = 1e-5
) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=atol, rtol=atol)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "r", "width"),
    [(1, 0, 8), (2, 0, 8), (3, 1, 8), (21, 0, 16), (21, 5, 50), (81, 40, 130), (150, 74, 40)],
)
@pytest.mark.parametrize("with_size", [True, False])
def test_every_shape(tokens: int, r: int, width: int, with_size: bool) -> None:
    x, branch = torch.randn(2, tokens, width), torch.randn(2, tokens, width)
    plan = random_plan(2, tokens, r)
    size = torch.randint(1, 9, (2, tokens)).float() if with_size else None
    for more in (None, branch):
        found = merged(x, size, plan, more)
        assert_equal(found, plain.torch_merge(x, more, size, plan))
        assert found[0].shape == (2, tokens - r, width)
    total = torch.full((2,), tokens) if size is None else size.sum(1)
    assert torch.equal(found[1].sum(1), total.float())
    if r:
        assert not torch.equal(merged(x, size, plan)[0], take(x, plan.keep))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    x, branch = torch.randn(2, 41, 24).to(dtype), torch.randn(2, 41, 24).to(dtype)
    size, plan = torch.randint(1, 300, (2, 41)).float(), random_plan(2, 41, 15)
    found = merged(x, size, plan, branch)
    assert found[0].dtype == dtype
    exact = plain.torch_merge((x + branch).double(), None, size.double(), plan)
    # the interpreter truncates to bf16 where a device rounds: twice here
    step = torch.finfo(dtype).eps * (4 if dtype == torch.bfloat16 else 1)
    torch.testing.assert_close(found[0].double(), exact[0], atol=step, rtol=step)
    assert torch.equal(found[1], exact[1].float())


def test_any_strides() -> None:
    plan, size = random_plan(3, 31, 12), torch.randint(1, 4, (1, 31)).float().expand(3, -1)
    wide = torch.randn(3, 31, 48)
    for x in (
        wide[..., ::2],
        wide[:1, :, :24].expand(3, -1, -1),
        wide[:, :1, :24].expand(-1, 31, -1),
        wide.transpose(0, 1).contiguous().transpose(0, 1)[..., 5:29],
        torch.randn(3, 24, 31).transpose(1, 2),
    ):
        assert_equal(
            merged(x, size, plan, wide[..., :24]), plain.torch_merge(x, wide[..., :24], size, plan)
        )


def test_all_tokens_into_one() -> None:
    x, size = torch.randn(2, 70, 16), torch.randint(1, 9, (2, 70)).float()
    plan = collapsed(2, 70, 1, x.device)
    found = merged(x, size, plan)
    assert_equal(found, plain.torch_merge(x, None, size, plan))
    mean = (x[:, 1:] * size[:, 1:, None]).sum(1) / size[:, 1:].sum(1, keepdim=True)
    torch.testing.assert_close(found[0][:, 1], mean, atol=1e-5, rtol=0)


def test_padding_has_no_weight() -> None:
    x, size = torch.randn(1, 20, 16), torch.ones(1, 20)
    size[:, 14:] = 0
    source = torch.tensor([[18, 16, 2, 4]])
    plan, _ = complete(source, torch.tensor([[1, 19, 3, 3]]), 20)
    out, new, log = merged(x, size, plan)
    assert out.isfinite().all()
    assert torch.equal(out[:, 1], x[:, 1])
    torch.testing.assert_close(out[:, plan.slot[0, 2]], x[:, [2, 3, 4]].mean(1))
    assert torch.equal(out[:, -1], x[:, 19])  # a group of padding alone: as it was
    assert log.min() == -1e4
    assert new.sum() == 14


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bad_numbers_do_not_reach_tokens_that_nothing_joined(bad: float) -> None:
    x, plan = torch.randn(2, 41, 16), random_plan(2, 41, 10)
    clean = merged(x, None, plan)[0]
    x[1, plan.source[1, 0]] = bad
    found = merged(x, None, plan)[0]
    assert torch.equal(found[0], clean[0])
    alone = torch.ones(31, dtype=torch.bool)
    alone[plan.slot[1]] = False
    assert torch.equal(found[1, alone], clean[1, alone])
    assert alone[0]
    assert not found[1, plan.slot[1, 0]].isfinite().any()


def test_a_wider_branch_is_left_to_torch() -> None:
    x, branch, plan = torch.randn(1, 9, 8).half(), torch.randn(1, 9, 8), random_plan(1, 9, 2)
    found = dispatched(x, None, plan, branch)
    assert found[0].dtype == torch.float32
    assert_equal(found, plain.torch_merge(x, branch, None, plan))
