"""The images of a packed sequence apart: what observers see of a tower that packs them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from turbovlm.maths.plan import Plan, complete
from turbovlm.plug.encoder.trace import BlockRecord


class PackedView(NamedTuple):
    """What a block saw of a packed sequence of N tokens.

    Attributes:
        tokens: ``(1, N, C)`` after the attention and its residual.
        value: ``(N,)`` semantic value A times the tokens of the image.
        size: ``(1, N)`` of the tokens; None while that is 1 for all.
        plan: of the whole sequence, None for nothing.
    """

    tokens: Tensor
    value: Tensor
    size: Tensor | None
    plan: Plan | None


def apart(
    view: PackedView, images: Sequence[int], gone: Sequence[int], layer: int, prefix: int
) -> BlockRecord:
    """The record of a block as if the images were a batch, one sample each.

    Shorter images are padded with tokens of size 0. The plan of an image that loses fewer tokens
    than another merges padding beside its own.

    Args:
        view: the block.
        images: tokens of each image now.
        gone: how many of them the plan takes.
        layer: index of the block.
        prefix: of the tower.
    """
    device = view.tokens.device
    most = max(gone)
    length = max(n - r for n, r in zip(images, gone, strict=True)) + most
    counts = torch.tensor(images, device=device).unsqueeze(1)
    starts = counts.cumsum(0) - counts
    places = torch.arange(length, device=device)
    real = places < counts
    index = starts + torch.minimum(places, counts - 1)
    size = torch.ones_like(view.value) if view.size is None else view.size[0]
    padded = not bool(real.all())
    return BlockRecord(
        layer,
        prefix,
        view.tokens[0, index].masked_fill(~real.unsqueeze(-1), 0).detach(),
        (view.value[index] / counts).masked_fill(~real, 0).detach(),
        size[index] * real if padded or view.size is not None else None,
        None if view.plan is None else _plans(view.plan, images, gone, length),
    )


def _plans(plan: Plan, images: Sequence[int], gone: Sequence[int], length: int) -> Plan:
    """The plan of the whole sequence as one plan for each image."""
    most = max(gone)
    sources, destinations = [], []
    for count, r, end in zip(images, gone, accumulate(images), strict=True):
        own = (plan.source[0] >= end - count) & (plan.source[0] < end)
        source = plan.source[0, own] - (end - count)
        destination = plan.destination[0, own] - (end - count)
        stays = source.new_ones(count).index_fill_(0, source, 0).argmax()
        sources.append(torch.cat([source, torch.arange(count, count + most - r).to(source)]))
        destinations.append(torch.cat([destination, stays.expand(most - r)]))
    return complete(torch.stack(sources), torch.stack(destinations), length)[0]
