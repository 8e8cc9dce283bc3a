"""Whole hosts with the kernels on: what they merge equals what the torch path merges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import turbovlm
from tests.hosts.zoo import CASES
from turbovlm import Merge, kernels
from turbovlm.kernels import ops

NAMES = ("vit", "siglip", "siglip2", "dinov3", "bert", "timm_registers", "torchvision", "whisper")
SOME = [case for case in CASES if case.name in NAMES]


def test_the_names_are_there() -> None:
    assert {case.name for case in SOME} == set(NAMES)


@pytest.mark.parametrize("case", SOME, ids=lambda c: c.name)
@pytest.mark.parametrize("method", ["turbo", "semantics"])
@torch.no_grad()
def test_a_host_merges_the_same(case: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = case.build(), case.inputs()
    host = case.run(model, x)
    setting = Merge(r=(5, 0, 5, 0), method=method)
    kernels.use_kernels("torch")
    with turbovlm.applied(model, setting) as run:
        expected, trace = case.run(model, x), run.trace
    kernels.use_kernels("triton")
    ran: list[str] = []
    attempt = ops.attempt

    def note(name: str, *args: Any) -> Any:
        ran.append(name)
        return attempt(name, *args)

    monkeypatch.setattr(ops, "attempt", note)
    with turbovlm.applied(model, setting) as run:
        ours, seen = case.run(model, x), run.trace
    kernels.use_kernels("auto")
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(seen.survivors(), trace.survivors())
    assert (ours - host).abs().max() > 1e-3
    assert {"attend", "look", "best", "plan", "merge"} <= set(ran)
