"""Which visual tokens a language model gets: ours, and what others propose, to the same count.

Written from the ideas of the papers: DivPrune (Alvar et al., CVPR 2025) keeps the tokens whose
smallest distance to one another is largest; VisionZip (Yang et al., CVPR 2025) keeps the most
attended tokens and, for one in about six, averages the others around evenly spaced ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from turbovlm.maths.cells import cells
from turbovlm.maths.select import Selection, keep_tokens, unit_features
from turbovlm.maths.selectors import SELECTORS, Candidates

DOMINANT = 54 / 64
"""VisionZip's share of most attended tokens among those kept; the others hold context."""


@dataclass(frozen=True)
class Seen:
    """The visual tokens of ``I`` pictures.

    Attributes:
        features: ``(I, n, C)`` as the language model gets them.
        place: ``(n, 3)`` frame, height and width of each, 0 to 1.
        attended: ``(I, n)`` attention that each gets in the tower's last block.
        keys: ``(I, n, d)`` of that block.
    """

    features: Tensor
    place: Tensor
    attended: Tensor
    keys: Tensor


@dataclass(frozen=True)
class Reduced:
    """What is left of them: ``features`` ``(I, K, C)`` at the positions ``at`` ``(I, K)``.

    ``size`` ``(I, K)`` says how many of all tokens are most similar to each, if that is known.
    """

    features: Tensor
    at: Tensor
    size: Tensor | None = None


def whole(seen: Seen) -> Reduced:
    """All tokens."""
    images, count, _ = seen.features.shape
    return Reduced(seen.features, torch.arange(count).expand(images, -1))


def library(seen: Seen, keep: int, method: str = "turbo", seed: int = 0) -> Reduced:
    """`turbovlm.VisualTokens` with this method and otherwise its defaults."""
    candidates = Candidates(unit_features(seen.features), seen.features, seen.place, seed)
    scores = SELECTORS[method](candidates, keep)
    cell = cells(seen.place, keep) if method == "turbo" else None
    return _folded(seen, keep_tokens(candidates.unit, scores, keep, cell=cell))


def dropped(seen: Seen, keep: int, method: str, seed: int = 0) -> Reduced:
    """The tokens that this method chooses, and nothing merged into them."""
    candidates = Candidates(unit_features(seen.features), seen.features, seen.place, seed)
    scores = SELECTORS[method](candidates, keep)
    return _folded(seen, keep_tokens(candidates.unit, scores, keep, merge=False))


def visionzip(seen: Seen, keep: int) -> Reduced:
    """The most attended tokens, and averages of the others by the similarity of their keys."""
    images = len(seen.features)
    dominant = max(1, round(keep * DOMINANT))
    context = keep - dominant
    order = seen.attended.argsort(1, descending=True)
    first, rest = order[:, :dominant].sort(1).values, order[:, dominant:].sort(1).values
    kept = _rows(seen.features, first)
    if context == 0:
        return Reduced(kept, first)
    step = max(1, rest.shape[1] // context)
    targets = torch.arange(0, step * context, step)
    others = torch.ones(rest.shape[1], dtype=torch.bool)
    others[targets] = False
    keys = torch.nn.functional.normalize(_rows(seen.keys, rest), dim=-1)
    owner = (keys[:, others] @ keys[:, targets].transpose(1, 2)).argmax(2)
    left = _rows(seen.features, rest)
    total, size = left[:, targets].clone(), torch.ones(images, context, 1)
    total.scatter_add_(1, owner.unsqueeze(2).expand(-1, -1, left.shape[2]), left[:, others])
    size.scatter_add_(1, owner.unsqueeze(2), torch.ones(*owner.shape, 1))
    at = torch.cat([first, rest[:, targets]], 1)
    features = torch.cat([kept, total / size], 1)
    at, order = at.sort(1)
    return Reduced(_rows(features, order), at)


def pooled(seen: Seen, keep: int) -> Reduced:
    """Averages over a grid of at least ``keep`` cells, each at the token nearest to its centre."""
    rows = round(seen.features.shape[1] ** 0.5)
    side = coarse_side(keep)
    grid = seen.features.transpose(1, 2).unflatten(2, (rows, rows))
    features = torch.nn.functional.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2)
    return Reduced(features, coarse_places(rows, side).expand(len(features), -1))


def coarse_side(keep: int) -> int:
    """Side of the smallest square of at least ``keep`` tokens."""
    side = int(keep**0.5)
    return side if side * side >= keep else side + 1


def coarse_places(rows: int, side: int) -> Tensor:
    """Which of ``rows**2`` tokens lie nearest to the centres of ``side**2`` cells."""
    centre = ((torch.arange(side) + 0.5) * rows / side).long()
    return (centre[:, None] * rows + centre).flatten()


DRAWS = 3

CRITERIA: dict[str, Callable[[Seen, int], Reduced]] = {
    "ours": library,
    "random": lambda seen, keep: dropped(seen, keep, "random"),
    "uniform": lambda seen, keep: dropped(seen, keep, "uniform"),
    "pooled": pooled,
    "norm": lambda seen, keep: dropped(seen, keep, "norm"),
    "divprune": lambda seen, keep: dropped(seen, keep, "divprune"),
    "visionzip": visionzip,
}


def _folded(seen: Seen, selection: Selection) -> Reduced:
    size = torch.zeros(selection.kept.shape)
    size.scatter_add_(1, selection.owner, torch.ones(selection.owner.shape))
    return Reduced(selection.fold(seen.features), selection.kept, size)


def _rows(x: Tensor, at: Tensor) -> Tensor:
    return x.gather(1, at.unsqueeze(2).expand(-1, -1, x.shape[2]))


def chosen(seen: Seen, keep: int, names: Collection[str]) -> Iterator[tuple[str, list[Reduced]]]:
    """The criteria of these names with what they leave; several draws of what is random."""
    for name, reduce in CRITERIA.items():
        if name not in names:
            continue
        if name == "random":
            yield name, [dropped(seen, keep, "random", seed) for seed in range(DRAWS)]
        else:
            yield name, [reduce(seen, keep)]
