"""Which visual tokens stay, and who stands for the others: tensors in, tensors out.

The default is facility location: the kept set ``S`` maximises

    f(S) = sum_i w_i max_{j in S} cos(x_i, x_j)^+

the similarity of every token to the kept one nearest to it. Greedy choice is within 1 - 1/e of the
optimum (Nemhauser et al., 1978) but takes ``K`` passes over an ``N x N`` map, one after the other.
Here the tokens are first split by their features into leaves of equal size, greedy runs in all
leaves at once, and the gains that it measures there are ranked together: a few short passes
whatever ``K`` is. Tests hold the result to 0.97 of exact greedy's objective. Small images are one
leaf: their choice is greedy's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MERGE_SIMILARITY = 0.8
"""A dropped token is averaged into its representative from this cosine similarity on; below it
the average would be neither of the two."""

SKETCH = 128
"""Features wider than twice this are projected to as many signed sums before they are compared."""


@dataclass(frozen=True)
class Selection:
    """Which of ``n`` tokens stay in each of ``I`` images.

    Attributes:
        kept: ``(I, K)`` positions that stay, ascending.
        owner: ``(I, n)`` for each token, the place among ``kept`` of the one most similar to it.
        merged: ``(I, n)`` bool: averaged into its owner; a kept token belongs to itself.
    """

    kept: Tensor
    owner: Tensor
    merged: Tensor

    def fold(self, x: Tensor) -> Tensor:
        """Kept tokens with what was merged into them averaged in: ``(I, n, C)`` to ``(I, K, C)``.

        A token that nothing was merged into comes out bit for bit.
        """
        images, count = self.kept.shape
        # what is not merged is summed into a spare last slot
        slot = torch.where(self.merged, self.owner, count)
        start = torch.arange(images, device=x.device).unsqueeze(1) * (count + 1)
        slot = (slot + start).flatten()
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        rows = x.to(wide).flatten(0, 1)
        total = rows.new_zeros(images * (count + 1), x.shape[2])
        size = rows.new_zeros(images * (count + 1), 1)
        if x.device.type == "cpu":
            total.index_add_(0, slot, rows)
        else:  # the same sums; there index_add adds in an order that changes
            total.index_put_((slot,), rows, accumulate=True)
        size.index_add_(0, slot, rows.new_ones(len(slot), 1))
        mean = (total / size).unflatten(0, (images, -1))
        return mean[:, :count].to(x.dtype)


def unit_features(x: Tensor) -> Tensor:
    """Unit vectors whose products are cosine similarities: ``(I, n, C)`` to ``(I, n, d)`` fp32.

    Up to ``2 * SKETCH`` channels this is exact; wider features are folded to `SKETCH` sums with
    random signs (a count sketch), whose products err by about ``1 / sqrt(SKETCH)`` where features
    are orthogonal and less where they are similar.
    """
    x = x if x.dtype == torch.float64 else x.float()
    if x.shape[2] > 2 * SKETCH:
        x = _sketch(x)
    return F.normalize(x, dim=-1)


def _sketch(x: Tensor) -> Tensor:
    width = x.shape[2]
    generator = torch.Generator().manual_seed(width)
    sign = (torch.randint(0, 2, (width,), generator=generator) * 2.0 - 1).to(x)
    if x.device.type != "cpu":
        return F.pad(x * sign, (0, -width % SKETCH)).unflatten(2, (-1, SKETCH)).sum(2)
    out = x.new_zeros(*x.shape[:2], SKETCH)  # the same, read once
    for first in range(0, width, SKETCH):
        part = x[..., first : first + SKETCH]
        out[..., : part.shape[2]].addcmul_(part, sign[first : first + SKETCH])
    return out


def keep_tokens(
    unit: Tensor, scores: Tensor, keep: int, *, cell: Tensor | None = None, merge: bool = True
) -> Selection:
    """Keep the ``keep`` highest scores, one in every cell first, and find who stands for whom.

    Args:
        unit: ``(I, n, d)`` unit vectors.
        scores: ``(I, n)``.
        keep: K, from 1 to n.
        cell: ``(n,)`` the cell of each token, at most ``K`` different ones; None for no floor.
        merge: whether similar tokens are merged into their representatives.
    """
    images = len(unit)
    if cell is not None:
        scores = first_of_each(scores, cell)
    top = scores.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    kept = top.sort(dim=1).values
    chosen = unit.gather(1, kept.unsqueeze(-1).expand(-1, -1, unit.shape[2]))
    similarity, owner = (unit @ chosen.transpose(1, 2)).max(2)
    slots = torch.arange(keep, device=unit.device).expand(images, -1)
    owner = owner.scatter(1, kept, slots)
    merged = (
        (similarity >= MERGE_SIMILARITY) if merge else torch.zeros_like(owner, dtype=torch.bool)
    )
    return Selection(kept, owner, merged.scatter(1, kept, True))


def first_of_each(scores: Tensor, cell: Tensor) -> Tensor:
    """Scores ``(I, n)`` in which the best token of each cell ``(n,)`` comes before all others."""
    images, tokens = scores.shape
    # ranks are distinct, so that each cell has one best token whatever ties there are
    order = scores.sort(dim=1, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(tokens, device=order.device).expand(images, -1)
    )
    cells = cell.to(rank.device).expand(images, -1)
    best = torch.full_like(rank, -1).scatter_reduce_(1, cells, rank, "amax")
    return torch.where(rank == best.gather(1, cells), rank + tokens, rank).double()


def enough(unit: Tensor, scores: Tensor, coverage: float) -> Tensor:
    """How many of the highest scores reach a mean similarity of ``coverage``: ``(I,)`` int64.

    Args:
        unit: ``(I, n, d)`` unit vectors.
        scores: ``(I, n)``.
        coverage: mean over all tokens of the similarity to the kept one nearest to it, in (0, 1].
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    ranked = unit.gather(1, order.unsqueeze(-1).expand_as(unit)).transpose(1, 2)
    total = torch.zeros_like(scores)
    for rows in unit.split(512, dim=1):  # the n x n map is never stored whole
        total += (rows @ ranked).clamp_min(0).cummax(2).values.sum(1)
    reached = total / unit.shape[1]
    return ((reached < coverage - 1e-5).sum(1) + 1).clamp_max(unit.shape[1])
