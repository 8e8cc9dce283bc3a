"""Bipartite matching: which tokens go, and into which ones (section 3.3, supplementary 1.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from turbovlm.maths.hashing import random_scores
from turbovlm.maths.plan import Plan, complete
from turbovlm.maths.precision import full_precision
from turbovlm.maths.score import Context, Score
from turbovlm.maths.sets import EvenOdd, EvenOddWithin, Sets

TILE_ROWS = 512
"""Rows of similarity that are computed at a time."""
TILE_SOURCES = 2048
"""From this many sources on, similarity is computed in tiles: the S x D map no longer fits the
caches, and is never stored whole."""


@dataclass(frozen=True)
class Rule:
    """How tokens are chosen in one block.

    Attributes:
        score: gives the information degree.
        alpha: its weight of A; None fits one.
        seed: of pseudo-random scores and pairs.
        block: index of the block, from 0.
        share: of the fitted weight that the guide deserves.
        runner_up: also find each source's second best destination.
        released_order: leave survivors in the order of the released code, see
            `EvenOdd.released_order`.
    """

    score: Score
    alpha: float | None = None
    seed: int = 0
    block: int = 0
    share: float | Tensor = 1.0
    runner_up: bool = False
    released_order: bool = False

    @property
    def reads_value(self) -> bool:
        """Whether the score reads A, so that the guide is computed only then."""
        return self.score.reads_value(self.alpha)


@dataclass(frozen=True)
class Padding:
    """Padding of a batch whose real tokens all come first.

    Attributes:
        count: ``(B, 1)`` int64 tokens of each sample that are real.
        removed: ``(B, 1)`` int64 how many of them this block merges away, at most r.
    """

    count: Tensor
    removed: Tensor


@dataclass(frozen=True)
class Match:
    """A plan and what restoring may need beside it.

    Attributes:
        plan: what is merged.
        rank: ``(B, N)`` where each survivor stands among the survivors, from 1.
        similar: ``(B, r, 2)`` cosines of each source with its two best destinations, where asked.
        second: ``(B, r)`` position of the second best destination, likewise.
    """

    plan: Plan
    rank: Tensor
    similar: Tensor | None = None
    second: Tensor | None = None


def unit_rows(metric: Tensor) -> Tensor:
    """``(B, N, d)`` L2-normalised in fp32, or in the metric's own type where that is wider.

    Autocast would compute the products of unit vectors in half precision; a cosine needs fp32.
    """
    wide = metric if metric.dtype == torch.float64 else metric.float()
    return torch.nn.functional.normalize(wide, dim=-1)


def nearest(
    unit: Tensor, sets: Sets, *, count: int = 1, real: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mutual redundancy R of every source, and where its best destinations stand (Eq. 6).

    Args:
        unit: ``(B, N, d)``, see `unit_rows`.
        sets: source and destination sets; of `EvenOddWithin`, destinations in another segment are
            not open.
        count: how many destinations, 1 or 2.
        real: ``(B, N)`` bool, False for padding, which is never a destination.

    Returns:
        Cosines and indices into the destination set, ``(B, S)`` each, or ``(B, S, 2)`` for two.
        The cosine is -inf where no destination is left.
    """
    sources, other = sets.sources(unit), sets.destinations(unit).transpose(1, 2)
    closed = None if real is None else ~sets.destinations(real).unsqueeze(1)

    goal = sets.destinations(sets.within) if isinstance(sets, EvenOddWithin) else None

    def best(rows: Tensor, home: Tensor | None) -> tuple[Tensor, Tensor]:
        similarity = rows @ other
        if closed is not None:
            similarity = similarity.masked_fill(closed, -torch.inf)
        if home is not None and goal is not None:
            apart = home.unsqueeze(2) != goal.unsqueeze(1)
            similarity = similarity.masked_fill(apart, -torch.inf)
        if count == 1:
            found = similarity.max(-1)
            return found[0], found[1]
        value, index = similarity.topk(min(count, similarity.shape[2]), dim=-1)
        shape = (*value.shape[:2], count)  # a single destination is its own second
        return value.expand(shape), index.expand(shape)

    home = sets.sources(sets.within) if isinstance(sets, EvenOddWithin) else None
    with full_precision(unit):
        if sources.shape[1] < TILE_SOURCES:
            return best(sources, home)
        rows = sources.split(TILE_ROWS, dim=1)
        homes = [None] * len(rows) if home is None else home.split(TILE_ROWS, dim=1)
        tiles = [best(*tile) for tile in zip(rows, homes, strict=True)]
    return torch.cat([t[0] for t in tiles], 1), torch.cat([t[1] for t in tiles], 1)


def match(
    unit: Tensor,
    value: Tensor | None,
    r: int,
    sets: Sets,
    rule: Rule,
    padding: Padding | None = None,
) -> Match:
    """Choose the ``r`` sources with the highest information degree and their destinations.

    Args:
        unit: ``(B, N, d)`` what similarity is measured on, see `unit_rows`.
        value: semantic value A ``(B, N)``, or None where the score does not read it.
        r: tokens to remove, at most S; of `EvenOddWithin`, at most the sources that have a
            destination in their segment.
        sets: source and destination sets.
        rule: the score, and where it is asked.
        padding: of the batch. Each sample then merges ``padding.removed`` of its real tokens, and
            the rest of r is dropped from the padding at its end.
    """
    tokens = unit.shape[1]
    real = None
    if padding is not None:
        real = torch.arange(tokens, device=unit.device) < padding.count
    redundancy, partner = nearest(unit, sets, count=2 if rule.runner_up else 1, real=real)
    best = redundancy[..., 0] if rule.runner_up else redundancy
    known = None if real is None else sets.sources(real)
    if isinstance(sets, EvenOddWithin):
        known = best > -torch.inf
    if rule.score.random_pairs:
        partner = _random_pairs(partner, sets, rule, real)
    context = Context(
        tokens if padding is None else padding.count,
        rule.block,
        rule.alpha,
        rule.seed,
        rule.share,
        known,
    )
    seen = None if value is None else sets.sources(value)
    degree = rule.score.function(best, seen, context)
    if context.real is not None:
        degree = degree.masked_fill(~context.real | (best == -torch.inf), -torch.inf)
    chosen = degree.topk(r, dim=1).indices
    goals = partner[..., 0] if rule.runner_up else partner
    source = sets.source_positions(chosen)
    destination = sets.destination_positions(goals.gather(1, chosen))
    if padding is not None:
        first = sets.destination_positions(chosen.new_zeros(()))
        source, destination = with_padding(source, destination, padding, tokens, first)
    order = None
    if rule.released_order and isinstance(sets, EvenOdd):
        order = sets.released_order(unit.device)
    plan, rank = complete(source, destination, tokens, order)
    if not rule.runner_up:
        return Match(plan, rank)
    second = sets.destination_positions(partner[..., 1].gather(1, chosen))
    return Match(plan, rank, redundancy.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 2)), second)


def _random_pairs(partner: Tensor, sets: Sets, rule: Rule, real: Tensor | None) -> Tensor:
    """Pseudo-random destinations in the place of ``partner`` (Table 8, A1)."""
    drawn = random_scores(sets.source_count, rule.seed + 1, rule.block, partner.device)
    if isinstance(sets, EvenOddWithin):
        home, goal = sets.sources(sets.within), sets.destinations(sets.within).contiguous()
        first = torch.searchsorted(goal, home.contiguous())
        left = torch.searchsorted(goal, home.contiguous(), right=True) - first
        index = first + torch.minimum((drawn * left).long(), (left - 1).clamp_min(0))
        index = index.clamp_max(sets.destination_count - 1)
    elif real is None:
        count = sets.destination_count
        index = (drawn * count).long().clamp_max(count - 1)
    else:
        left = sets.destinations(real).sum(1, keepdim=True)
        index = torch.minimum((drawn * left).long(), (left - 1).clamp_min(0))
    if partner.dim() == 3:
        index = index.unsqueeze(-1)
    return index.expand_as(partner)


def with_padding(
    source: Tensor, destination: Tensor, padding: Padding, tokens: int, first: Tensor
) -> tuple[Tensor, Tensor]:
    """Keep the first ``padding.removed`` pairs of each sample; padding goes for the others.

    Padding has size 0, so that it changes no mean, but what it goes into must survive: the first
    destination does where real tokens are merged, and everything real where none is.

    Args:
        source: ``(B, r)`` positions merged away.
        destination: ``(B, r)`` positions they are merged into.
        padding: of the batch.
        tokens: N.
        first: position of the first destination, ``()``.
    """
    index = torch.arange(source.shape[1], device=source.device)
    own = index < padding.removed
    last = tokens - 1 - (index - padding.removed)
    goal = torch.where(padding.removed > 0, first, 0)
    return torch.where(own, source, last), torch.where(own, destination, goal)
