"""Merge and restore for generation (paper section 3.3, Eq. 14): destinations, matching, restoring.

The sequence is an image in rows, ``N = height x width`` visual tokens without prefix tokens. What
is merged before a module comes back after it, so sizes never accumulate: each token enters with
size 1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from turbovlm.config import MergeRestore
from turbovlm.maths.fold import Fold, Slope
from turbovlm.maths.information import SEMANTIC_SCALE, alpha_for, random_scores
from turbovlm.maths.matching import TILE_ROWS, TILE_TOKENS, complete

SKETCH_WIDTH = 64
"""Fixed random directions that tokens are compared on, and that restoring has a slope along."""

TEMPERATURE = 0.1
"""Of the softmax over information degrees in the weighted restore; the paper names none."""


@dataclass(frozen=True)
class Sets:
    """Which positions may go and which may take them in: ``(S,)`` and ``(D,)``, S + D = N."""

    source: Tensor
    destination: Tensor


def sets(
    grid: tuple[int, int], config: MergeRestore, lot: Tensor | None, device: torch.device
) -> Sets:
    """The source and destination sets of an image of tokens.

    Args:
        grid: height and width in tokens.
        config: ``destinations`` and ``cell``. Rows and columns beyond the last whole cell are
            sources.
        lot: ``()`` int64 that decides which token of each cell is the destination; None takes
            the first.
        device: of the result.

    Returns:
        Static shapes: nothing is sorted or counted, so a compiler can follow.
    """
    height, width = grid
    positions = torch.arange(height * width, device=device).view(height, width)
    if config.destinations == "bipartite":
        flat = positions.flatten()
        return Sets(flat[::2], flat[1::2])
    down, across = config.cell[0], config.cell[1]
    rows, columns = height // down, width // across
    inside = positions[: rows * down, : columns * across]
    cells = inside.reshape(rows, down, columns, across).transpose(1, 2).reshape(-1, down * across)
    edge = [
        positions[rows * down :].flatten(),
        positions[: rows * down, columns * across :].flatten(),
    ]
    if lot is None:
        chosen, rest = cells[:, 0], cells[:, 1:]
    else:
        count, members = cells.shape
        first = _spread(count, lot, device) % members
        turned = (first.unsqueeze(1) + torch.arange(members, device=device)) % members
        drawn = cells.gather(1, turned)
        chosen, rest = drawn[:, 0], drawn[:, 1:]
    return Sets(torch.cat([rest.flatten(), *edge]), chosen)


def directions(width: int, device: torch.device) -> Tensor:
    """`SKETCH_WIDTH` fixed random directions of +-1, ``(width, 64)`` fp32."""
    lots = random_scores(width * SKETCH_WIDTH, 0, 0, device)
    return torch.where(lots < 0.5, -1.0, 1.0).view(width, SKETCH_WIDTH)


def sketch(x: Tensor, onto: Tensor | None = None) -> Tensor:
    """Tokens on `SKETCH_WIDTH` fixed random directions: ``(B, N, C)`` -> ``(B, N, 64)``.

    Distances keep their proportions to about an eighth, whatever C is (Johnson and Lindenstrauss),
    and matching costs as much as at the width of a head. Narrow tokens are left as they are.

    Args:
        x: the tokens.
        onto: their `directions`, where they are at hand.
    """
    width = x.shape[-1]
    if width <= SKETCH_WIDTH:
        return x
    return x @ (directions(width, x.device) if onto is None else onto).to(x)


def uses_value(config: MergeRestore) -> bool:
    """Whether the score uses A, so that the guide is computed only then."""
    return config.method == "semantics" or (config.method == "turbo" and config.alpha != 0)


def match(
    metric: Tensor,
    value: Tensor | None,
    r: int,
    parts: Sets,
    config: MergeRestore,
    block: int,
    share: float | Tensor = 1.0,
    copies: int = 1,
) -> Fold:
    """Choose the ``r`` sources with the highest information degree and their destinations.

    Args:
        metric: ``(B, N, d)``; similarity is its cosine (Eq. 6), in fp32 or wider.
        value: semantic value A ``(B, N)``, or None where the score does not use it.
        r: tokens to merge, at most the number of sources.
        parts: the source and destination sets.
        config: the score and the way of restoring.
        block: index of the block, for ``method="random"``.
        share: of the default weight that A has.
        copies: how often the batch is repeated; the copies share the plan.
    """
    batch, tokens, width = metric.shape
    # a UNet's tokens are channels first: as rows, everything below is several times as fast, and a
    # single sample is turned by a faster kernel as a matrix
    metric = metric.reshape(batch * tokens, width).contiguous().view(batch, tokens, width)
    unit = F.normalize(metric if metric.dtype == torch.float64 else metric.float(), dim=-1)
    sources = unit.index_select(1, parts.source)
    destinations = unit.index_select(1, parts.destination).transpose(1, 2)
    best, partner = _nearest(sources, destinations, 2 if config.restore == "weighted" else 1)
    degree = _degree(
        best[..., 0],
        None if value is None else value[:, parts.source],
        config,
        tokens,
        block,
        share,
    )
    if config.method == "random":
        count = parts.destination.shape[0]
        lots = random_scores(parts.source.shape[0], (config.seed or 0) + 1, block, metric.device)
        partner = (lots * count).long().clamp_max(count - 1).view(1, -1, 1).expand_as(partner)
    chosen = degree.topk(r, dim=1).indices
    goals = parts.destination[
        partner.gather(1, chosen.unsqueeze(-1).expand(-1, -1, partner.shape[-1]))
    ]
    plan, rank = complete(parts.source[chosen], goals[..., 0], tokens)
    fold = Fold.of(plan, rank)
    if config.restore == "linear":
        fold = dataclasses.replace(fold, slope=Slope.of(fold, sketch(unit)))
    elif config.restore == "weighted":
        similar = best.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 2))
        share = (similar / TEMPERATURE).softmax(-1)[..., 1:]
        fold = dataclasses.replace(fold, second=rank.gather(1, goals[..., 1]), share=share)
    return fold.repeat(copies)


def _nearest(sources: Tensor, destinations: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best destinations of every source: cosine and index, ``(B, S, count)``."""

    def best(rows: Tensor) -> tuple[Tensor, Tensor]:
        similarity = rows @ destinations
        if count == 1:
            value, index = similarity.max(-1, keepdim=True)
            return value, index
        value, index = similarity.topk(count, dim=-1)
        return value, index

    if sources.shape[1] < TILE_TOKENS // 2:
        return best(sources)
    tiles = [best(rows) for rows in sources.split(TILE_ROWS, dim=1)]  # no N x N map is ever whole
    return torch.cat([t[0] for t in tiles], 1), torch.cat([t[1] for t in tiles], 1)


def _degree(
    redundancy: Tensor,
    value: Tensor | None,
    config: MergeRestore,
    tokens: int,
    block: int,
    share: float | Tensor,
) -> Tensor:
    """E ``(B, S)`` by the configured method."""
    if config.method == "random":
        lots = random_scores(redundancy.shape[1], config.seed or 0, block, redundancy.device)
        return lots.expand(redundancy.shape)
    if value is None or not uses_value(config):
        return redundancy
    if config.method == "semantics":
        return -value
    alpha = alpha_for(config.alpha, redundancy, tokens)
    if config.alpha is None:
        alpha = alpha * share
    return redundancy - alpha * SEMANTIC_SCALE * value


def _spread(count: int, lot: Tensor, device: torch.device) -> Tensor:
    """``(count,)`` pseudo-random integers from 0, by a hash of the lot and the position.

    As `random_scores`, for a lot that is a tensor: what it holds differs in every step, and a
    compiler must not have to ask.
    """
    x = torch.arange(1, count + 1, device=device, dtype=torch.int64) * 40503
    x = (x + lot.to(device) % 1048573 * 60493) % 2147483647
    for factor in (48271, 69621, 16807):
        x = (x ^ (x >> 13)) * factor % 2147483647
    return x >> 7
