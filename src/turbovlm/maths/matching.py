"""Bipartite matching: which tokens go, and into which ones (paper section 3.3, supplementary 1.1).

Even positions of the whole sequence are the source set, odd ones the destination set; prefix
tokens (cls, distillation, registers) belong to neither, so they are never merged nor changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from turbovlm.config import Merge
from turbovlm.maths.information import information_degree, random_scores

TILE_TOKENS = 4096
"""From this length on the similarity is computed in row tiles: the N x N / 4 map no longer fits
the caches, and is never stored whole."""
TILE_ROWS = 512


@dataclass(frozen=True)
class Plan:
    """What one block merges. Positions index the sequence of ``tokens`` that enters the merge.

    Attributes:
        source: ``(B, r)`` positions merged away.
        destination: ``(B, r)`` positions they are merged into.
        keep: ``(B, N - r)`` surviving positions, ascending: order is preserved.
        slot: ``(B, r)`` where each source's destination stands among the survivors.
        tokens: N.
    """

    source: Tensor
    destination: Tensor
    keep: Tensor
    slot: Tensor
    tokens: int

    def representative(self) -> Tensor:
        """``(B, N)``: the position among the survivors that stands for each token."""
        batch, kept = self.keep.shape
        place = self.keep.new_zeros(batch, self.tokens)
        place.scatter_(1, self.keep, torch.arange(kept, device=place.device).expand(batch, -1))
        return place.scatter_(1, self.source, self.slot)


def best_destination(
    metric: Tensor, prefix: int, real: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mutual redundancy R of every source, and where its best destination stands (Eq. 6).

    Args:
        metric: ``(B, N, d)``, any dtype; the cosine similarity is computed in fp32 unless the
            metric is already a wider type.
        prefix: number of prefix tokens.
        real: ``(B, N)`` bool, False for padding, which is nobody's best destination.

    Returns:
        R ``(B, S)``, -inf where no destination is left, and the index ``(B, S)`` into the
        destination set, int64.
    """
    unit = F.normalize(metric if metric.dtype == torch.float64 else metric.float(), dim=-1)
    sources = unit[:, first_source(prefix) :: 2]
    destinations = unit[:, first_destination(prefix) :: 2]
    other = destinations.transpose(1, 2)
    closed = None if real is None else ~real[:, None, first_destination(prefix) :: 2]

    def best(rows: Tensor) -> tuple[Tensor, Tensor]:
        similarity = rows @ other
        if closed is not None:
            similarity = similarity.masked_fill(closed, -torch.inf)
        value, index = similarity.max(-1)
        return value, index

    if metric.shape[1] < TILE_TOKENS:
        return best(sources)
    tiles = [best(rows) for rows in sources.split(TILE_ROWS, dim=1)]
    return torch.cat([t[0] for t in tiles], 1), torch.cat([t[1] for t in tiles], 1)


def match(
    metric: Tensor,
    value: Tensor | None,
    r: int,
    prefix: int,
    config: Merge,
    block: int,
    real: Tensor | None = None,
    guide: str | None = "cls",
) -> Plan:
    """Choose the ``r`` sources with the highest information degree and their destinations.

    Args:
        metric: ``(B, N, d)`` keys or queries averaged over heads.
        value: semantic value A ``(B, N)``, or None where the score does not use it.
        r: tokens to remove, at most half of the non-prefix tokens.
        prefix: number of prefix tokens.
        config: the score.
        block: index of the block, from 0.
        real: ``(B, N)`` bool, False for padding, which leaves first and takes nobody in.
        guide: what supplies A, for the default alpha.
    """
    tokens, start = metric.shape[1], first_source(prefix)
    redundancy, partner = best_destination(metric, prefix, real)
    if config.method == "random":  # Table 8, A1: pairs are random as well as the choice
        count = (tokens - first_destination(prefix) + 1) // 2
        spread = random_scores(partner.shape[1], config.seed + 1, block, metric.device)
        partner = (spread * count).long().clamp_max(count - 1).expand_as(partner)
    if value is not None:
        value = value[:, start::2]
    if real is None:
        degree = information_degree(
            redundancy, value, config, block=block, tokens=tokens, guide=guide
        )
        chosen = degree.topk(r, dim=1).indices
    else:
        filled, count = real[:, start::2], real.sum(1, keepdim=True)
        degree = information_degree(
            redundancy, value, config, block=block, tokens=count, guide=guide, real=filled
        )
        degree = degree.masked_fill(redundancy == -torch.inf, -torch.inf)
        degree = degree.masked_fill(~filled, torch.inf)
        # padding is all equal: stable, so that every device lets the same padding go
        chosen = degree.sort(dim=1, descending=True, stable=True).indices[:, :r]
    source = start + 2 * chosen
    destination = first_destination(prefix) + 2 * partner.gather(1, chosen)
    return complete(source, destination, tokens)[0]


def collapse(batch: int, tokens: int, prefix: int, device: torch.device) -> Plan:
    """All tokens behind the prefix go into the first of them, unmatched."""
    everyone = torch.arange(tokens, device=device).expand(batch, -1)
    source = everyone[:, prefix + 1 :]
    only = torch.full_like(source, prefix)
    return Plan(source, only, everyone[:, : prefix + 1], only, tokens)


def first_source(prefix: int) -> int:
    """First even position that is not a prefix token."""
    return prefix + prefix % 2


def first_destination(prefix: int) -> int:
    """First odd position that is not a prefix token."""
    return prefix + 1 - prefix % 2


def complete(source: Tensor, destination: Tensor, tokens: int) -> tuple[Plan, Tensor]:
    """A whole plan from who goes where; static shapes, no sort and no ``nonzero``.

    Args:
        source: ``(B, r)`` positions merged away.
        destination: ``(B, r)`` positions they are merged into.
        tokens: N.

    Returns:
        The plan, and ``(B, N)`` where each survivor stands among the survivors.
    """
    batch, r = source.shape
    alive = torch.ones(batch, tokens, dtype=torch.int64, device=source.device)
    alive.scatter_(1, source, 0)
    rank = alive.cumsum(1) - 1
    # survivors write their position to their rank, the merged ones to a spare last column
    kept = tokens - r
    spot = torch.where(alive.bool(), rank, kept)
    positions = torch.arange(tokens, device=source.device).expand(batch, -1)
    keep = source.new_empty(batch, kept + 1).scatter_(1, spot, positions)[:, :kept]
    return Plan(source, destination, keep, rank.gather(1, destination), tokens), rank
