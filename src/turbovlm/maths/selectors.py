"""The criteria by which tokens can be chosen, by name. All but ``"turbo"`` are baselines;
`selector` adds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from turbovlm.errors import ConfigError
from turbovlm.maths.leaves import leaf_gains


@dataclass(frozen=True)
class Candidates:
    """The tokens of images that lie alike.

    Attributes:
        unit: ``(I, n, d)`` unit vectors.
        features: ``(I, n, C)``.
        place: ``(n, 3)`` where they lie, or None.
        seed: for what is random.
    """

    unit: Tensor
    features: Tensor
    place: Tensor | None
    seed: int


SelectorFunction = Callable[[Candidates, int], Tensor]


def cover(tokens: Candidates, keep: int) -> Tensor:
    """Facility location: see `turbovlm.maths.leaves`."""
    return leaf_gains(tokens.unit, keep, torch.ones_like(tokens.unit[..., 0]))


def divprune(tokens: Candidates, keep: int) -> Tensor:
    """Max-min diversity of cosine distance (DivPrune, CVPR 2025), one token after the other."""
    return spread(1 - tokens.unit @ tokens.unit.transpose(1, 2), keep)


def norm(tokens: Candidates, keep: int) -> Tensor:
    """The longest features."""
    return tokens.features.float().norm(dim=2)


def uniform(tokens: Candidates, keep: int) -> Tensor:
    """Evenly over the picture, or over the sequence where tokens lie nowhere."""
    images, count, _ = tokens.unit.shape
    place = tokens.place
    if place is None:
        place = torch.arange(count, device=tokens.unit.device).unsqueeze(1)
    place = place.to(tokens.unit)
    return spread(torch.cdist(place, place).unsqueeze(0), keep).expand(images, -1)


def random(tokens: Candidates, keep: int) -> Tensor:
    """The same random places in every image, drawn on the CPU from the seed.

    What stays of an image may not depend on which others are in its batch.
    """
    generator = torch.Generator().manual_seed(tokens.seed)
    images, count, _ = tokens.unit.shape
    return torch.rand(count, generator=generator).to(tokens.unit.device).expand(images, -1)


def spread(distance: Tensor, keep: int) -> Tensor:
    """Scores ``(I, n)`` of max-min greedy: each step takes the token farthest from those taken.

    Args:
        distance: ``(I, n, n)``.
        keep: steps.
    """
    images, count, _ = distance.shape
    # the first is the one farthest from its nearest neighbour
    self = torch.eye(count, device=distance.device, dtype=torch.bool)
    reach = distance.masked_fill(self, torch.inf).amin(2)
    scores = torch.zeros(images, count, device=distance.device)
    taken = torch.zeros(images, count, dtype=torch.bool, device=distance.device)
    for step in range(keep):
        at = reach.masked_fill(taken, -1.0).argmax(1, keepdim=True)
        scores.scatter_(1, at, float(keep - step))
        taken.scatter_(1, at, True)
        row = distance.gather(1, at.unsqueeze(2).expand(-1, -1, count)).squeeze(1)
        reach = row if step == 0 else torch.minimum(reach, row)
    return scores


SELECTORS: dict[str, SelectorFunction] = {
    "turbo": cover,
    "divprune": divprune,
    "norm": norm,
    "uniform": uniform,
    "random": random,
}


def selector(name: str) -> Callable[[SelectorFunction], SelectorFunction]:
    """Add a criterion, so that ``VisualTokens(method=name)`` works in every setting.

    The function is given the `Candidates` and how many of them stay, and returns a score for each,
    ``(I, n)``: the highest stay.

    Args:
        name: not yet taken.

    Raises:
        ConfigError: if the name is taken.
    """
    if name in SELECTORS:
        raise ConfigError(f"a selector {name!r} exists already: choose another name")

    def add(function: SelectorFunction) -> SelectorFunction:
        SELECTORS[name] = function
        return function

    return add
