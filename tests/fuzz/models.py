"""The small models of the fuzz trials, built once, and how to run them."""

from __future__ import annotations

import copy
import functools
import random
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from tests.hosts.zoo import CASES as COMMON
from tests.hosts.zoo import Case, words
from tests.hosts.zoo_copies import COPIES
from tests.plug.test_trust_masks import CASES as PADDED
from tests.plug.test_trust_masks import run as run_masked
from turbovlm import hosts
from turbovlm.plug.encoder.find import find_towers

CASES = COMMON + COPIES
FIXED = ("siglip2", "idefics2", "idefics3", "smolvlm", "vit_mae")
"""Cases whose own run knows two samples."""


@dataclass(frozen=True)
class Built:
    """A case with a model and an input."""

    case: Case
    model: Any
    x: Tensor
    tokens: int

    @property
    def blocks(self) -> tuple[Any, ...]:
        """The blocks of its tower."""
        return find_towers(self.model, hosts.rows())[0].blocks

    @property
    def real(self) -> Tensor | None:
        """Which tokens are not padding."""
        return self.case.real

    @property
    def holes(self) -> bool:
        """Whether padding may lie between real tokens."""
        return self.case.inputs is not words and self.case.name != "siglip2"

    def run(self) -> Tensor:
        """Its output."""
        return self.case.run(self.model, self.x)

    def on(self, model: Any) -> Tensor:
        """The output of another model for the same input."""
        return self.case.run(model, self.x)

    def masked(self, x: Tensor, real: Tensor) -> Tensor:
        """Its output for an input with padding."""
        return run_masked(self.case, self.model, x, real)

    def around(self, model: Any) -> Built:
        """The same with another model."""
        return replace(self, model=model)

    def entering(self) -> Tensor:
        """What enters the first block ``(B, N, C)``."""
        seen: list[Tensor] = []
        handle = self.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        self.run()
        handle.remove()
        return seen[0]

    def leaving(self) -> Tensor:
        """What leaves the last block ``(B, N, C)``."""
        seen: list[Tensor] = []
        handle = self.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out))
        self.run()
        handle.remove()
        return seen[0]


@functools.cache
def _made(name: str) -> tuple[nn.Module, int]:
    case = next(c for c in CASES if c.name == name)
    model = case.build()
    return model, Built(case, model, case.inputs(), 0).entering().shape[1]


def build(rng: random.Random, case: Case, batch: int | None = None) -> Built:
    """A fresh copy of the case's model, and a random input for it."""
    model, tokens = _made(case.name)
    if batch is None:
        batch = 2 if case.real is not None or case.name in FIXED else rng.randint(1, 3)
    x = case.inputs(batch=batch, seed=rng.randrange(2**31))
    return Built(case, copy.deepcopy(model), x, tokens)


__all__ = ["CASES", "PADDED", "Built", "build"]
