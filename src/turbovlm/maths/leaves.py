"""Greedy facility location in equal leaves of a feature tree, all leaves at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EXACT_TOKENS = 256
"""Images of at most this many tokens are one leaf, in which greedy is exact: hardly slower there,
and measurably better (docs/notes/tokens.md)."""
LEAF_TOKENS = 48
"""Leaves are halved until they are this small: the passes get shorter, and more of the redundancy
between leaves goes unseen."""
LEAF_KEPT = 3
"""Leaves are not halved any more where fewer than this many of a leaf would be kept."""
SPREAD = 2.5
"""A leaf can be given this many times its share of the kept tokens."""

TIE = 1e-5
"""Two tokens that cover each other equally well tie in exact arithmetic, whatever else there is;
each later one is taken to gain this much less, so that rounding does not decide."""


def leaf_gains(unit: Tensor, keep: int, weight: Tensor) -> Tensor:
    """Gain of each token when greedy chose it within its leaf; -1 for those it did not reach.

    Args:
        unit: ``(I, n, d)`` unit vectors.
        keep: how many tokens are wanted of the ``n``.
        weight: ``(I, n)``.

    Returns:
        ``(I, n)``, in the dtype of ``unit``.
    """
    images, tokens, width = unit.shape
    depth = _depth(tokens, keep)
    size = math.ceil(tokens / 2**depth)
    index = tree(unit, depth)  # (I, leaves * size), tokens for padding
    padded = F.pad(unit, (0, 0, 0, 1))
    inside = padded.gather(1, index.unsqueeze(-1).expand(-1, -1, width)).view(-1, size, width)
    mass = F.pad(weight, (0, 1)).to(unit.dtype).gather(1, index).view(-1, size)
    share = keep * size / tokens
    steps = min(size, keep, math.ceil(SPREAD * share) + 1)
    if depth == 0:
        steps = min(size, keep)
    gains = greedy(inside @ inside.transpose(1, 2), mass, steps).view(images, -1)
    out = unit.new_full((images, tokens + 1), -1.0)
    return out.scatter_(1, index, gains)[:, :tokens]


def greedy(similarity: Tensor, weight: Tensor, steps: int) -> Tensor:
    """Exact greedy facility location, ``steps`` tokens in each of ``G`` groups at once.

    Args:
        similarity: ``(G, m, m)``; negative counts as zero.
        weight: ``(G, m)``.
        steps: tokens to choose, at most m.

    Returns:
        ``(G, m)`` the gain that each chosen token had when it was chosen, -1 for the others.
    """
    # row j: how well j covers each token, times what that token weighs
    cover = similarity.clamp_min(0) * weight.unsqueeze(1)
    near = torch.zeros_like(weight)
    out = torch.full_like(weight, -1.0)
    size = weight.shape[1]
    bias = (-TIE * torch.arange(size, device=weight.device, dtype=weight.dtype)).repeat(
        len(weight), 1
    )
    for _ in range(steps):
        gain = (cover - near.unsqueeze(1)).clamp_min_(0).sum(2)
        at = (gain + bias).argmax(1, keepdim=True)
        out.scatter_(1, at, gain.gather(1, at))
        bias.scatter_(1, at, -torch.inf)
        row = cover.gather(1, at.unsqueeze(2).expand(-1, -1, size)).squeeze(1)
        near = torch.maximum(near, row)
    return out


def tree(unit: Tensor, depth: int) -> Tensor:
    """Split each image's tokens ``depth`` times into halves along a direction of wide spread.

    Returns:
        ``(I, 2^depth * m)`` token indices, leaf after leaf of ``m``; ``n`` marks padding.
    """
    images, tokens, width = unit.shape
    leaves = 2**depth
    size = math.ceil(tokens / leaves)
    padded = F.pad(unit, (0, 0, 0, leaves * size - tokens))
    index = torch.arange(leaves * size, device=unit.device).clamp_max(tokens)
    index = index.expand(images, -1)
    for level in range(depth):
        nodes = 2**level
        x = padded.view(images * nodes, -1, width)
        # from the token least like the mean, one step of the power iteration
        mean = x.mean(1)
        least = torch.bmm(x, mean.unsqueeze(2)).squeeze(2).argmin(1)
        axis = x[torch.arange(len(x), device=x.device), least] - mean
        along = torch.bmm(x, axis.unsqueeze(2))
        axis = torch.bmm((along - along.mean(1, keepdim=True)).transpose(1, 2), x)
        along = torch.bmm(x, axis.transpose(1, 2)).squeeze(2)
        order = along.sort(dim=1, stable=True).indices
        index = index.reshape(images * nodes, -1).gather(1, order).view(images, -1)
        padded = x.gather(1, order.unsqueeze(2).expand_as(x)).view(images, -1, width)
    return index


def _depth(tokens: int, keep: int) -> int:
    depth = 0
    if tokens <= EXACT_TOKENS:
        return depth
    while tokens / 2 ** (depth + 1) >= LEAF_TOKENS and keep / 2 ** (depth + 1) >= LEAF_KEPT:
        depth += 1
    return depth
