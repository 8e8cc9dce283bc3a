"""Throughput of one model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import turbovlm
from turbovlm.errors import InputError


class Count(nn.Module):
    """Remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, flag: bool = True) -> Tensor:
        assert not torch.is_grad_enabled()
        self.calls.append(tuple(x.shape))
        return x * 2


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping"])
def test_every_form_of_input_runs_the_forward(form: str) -> None:
    model, x = Count(), torch.ones(4, 3)
    inputs = {"tensor": x, "tuple": (x, False), "mapping": {"flag": True, "x": x}}[form]
    assert turbovlm.throughput(model, inputs, rounds=2) > 0
    assert len(model.calls) > 2
    assert set(model.calls) == {(4, 3)}


def test_no_tensor_is_an_error() -> None:
    with pytest.raises(InputError, match="no tensor"):
        turbovlm.throughput(Count(), {"flag": True})
