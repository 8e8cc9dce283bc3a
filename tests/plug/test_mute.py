"""Stand-ins for a muted branch: a sum with nothing is the other operand, anything else is exact."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from turbovlm.plug.encoder.mute import Nothing, Zero


@pytest.mark.parametrize("shape", [(2, 5, 4), (5, 4)])
def test_a_sum_with_nothing_is_the_operand_itself(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    nothing = Zero(None).forward(x)
    assert isinstance(nothing, Nothing)
    before = x.clone()
    sums = x + nothing, nothing + x, torch.add(x, nothing), x.add_(nothing)
    assert all(found is x for found in sums)
    assert torch.equal(x, before)


def test_scaled_or_dropped_out_it_stays_what_it_is() -> None:
    x = torch.randn(2, 5, 4)
    nothing = Zero(None).forward(x)
    gamma = torch.randn(4)
    for found in (nothing * gamma, gamma * nothing, F.dropout(nothing, 0.5), nothing.mul_(gamma)):
        assert found is nothing
    assert Zero(1).forward(nothing) == (nothing, None)


def test_everything_else_sees_zeros() -> None:
    x = torch.randn(2, 5, 4)
    nothing = Zero(None).forward(x)
    plain = torch.zeros(2, 1, 1)
    wide = x.double()
    results = [
        (nothing.clamp(1, 2), plain.clamp(1, 2)),
        (wide + nothing, wide + plain),
        (nothing + wide, wide),
        (x[:1] + nothing, x[:1] + plain),
        (torch.add(x, nothing, alpha=2), x),
        (torch.cat([x, nothing.expand(2, 1, 4)], 1), torch.cat([x, plain.expand(2, 1, 4)], 1)),
        (x - nothing, x),
        (nothing + 1, plain + 1),
        (1 + nothing * 2, plain + 1),
    ]
    for found, expected in results:
        assert type(found) is torch.Tensor
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype


def test_a_copy_holds_no_tensors() -> None:
    zero = Zero(None)
    zero.forward(torch.randn(2, 5, 4))
    assert zero._made
    assert copy.deepcopy(zero)._made == {}
