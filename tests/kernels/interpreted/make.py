"""What the tests of this folder share."""

from __future__ import annotations

import torch
from torch import Tensor

from turbovlm.maths.plan import Plan


def keys(batch: int, heads: int, tokens: int, width: int) -> Tensor:
    """Keys as a strided view of a joint projection."""
    return torch.randn(batch, tokens, 3, heads, width)[:, :, 1].transpose(1, 2)


def assert_valid(plan: Plan, tokens: int, r: int) -> None:
    """Every token is merged away or kept, once, and every destination is kept at its slot."""
    batch = plan.source.shape[0]
    assert plan.source.shape == plan.destination.shape == plan.slot.shape == (batch, r)
    assert plan.keep.shape == (batch, tokens - r)
    together = torch.cat([plan.source, plan.keep], 1).sort(dim=1).values
    assert torch.equal(together, torch.arange(tokens).expand(batch, -1))
    assert torch.equal(plan.keep, plan.keep.sort(dim=1).values)
    assert torch.equal(plan.keep.gather(1, plan.slot), plan.destination)


def by_source(plan: Plan) -> list[Tensor]:
    """A plan's tensors with the pairs in ascending order of their sources."""
    order = plan.source.argsort(dim=1)
    pairs = (plan.source, plan.destination, plan.slot)
    return [*(x.gather(1, order) for x in pairs), plan.keep]


def assert_same(found: Plan, expected: Plan) -> None:
    for a, b in zip(by_source(found), by_source(expected), strict=True):
        assert torch.equal(a, b)
