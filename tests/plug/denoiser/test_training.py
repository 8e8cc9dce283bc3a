"""Gradients through merge and restore, with and without gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import turbovlm
from tests.hosts import denoisers
from turbovlm import MergeRestore

MODELS = (denoisers.unet, denoisers.motion, denoisers.pixart, denoisers.sd35, denoisers.flux)


def gradients(case: denoisers.Case) -> list[Tensor]:
    """Of one backward through two steps, as training accumulates them."""
    case.model.zero_grad()
    clock = 1.0 if case.name == "flux" else 1000.0
    losses = [case.step(time=part * clock).square().mean() for part in (0.5, 0.3)]
    torch.stack(losses).sum().backward()
    return [p.grad.clone() for p in case.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved", "reentrant"])
@pytest.mark.parametrize("guidance", [None, True], ids=["images", "guidance"])
@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_checkpointing_gives_the_same_gradients(
    make: Callable[[], denoisers.Case], guidance: bool | None, reentrant: bool
) -> None:
    case = make()
    model: Any = case.model
    host = gradients(case)
    turbovlm.apply(model, MergeRestore(ratio=0.3, guidance=guidance))
    expected = gradients(case)
    blocks = 0

    def again(function: Any, *args: Any) -> Any:
        nonlocal blocks
        blocks += 1
        return checkpoint(function, *args, use_reentrant=reentrant)

    model.enable_gradient_checkpointing(again)
    found = gradients(case)
    assert blocks >= 4
    assert len(found) == len(expected) == len(host)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)
    assert not all(torch.allclose(a, b) for a, b in zip(host, expected, strict=True))
