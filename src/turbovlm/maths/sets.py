"""Source and destination sets: which tokens may be merged away, and into which ones.

`EvenOdd` is the partition of the paper and its released code; `Grid` lays a destination in every
cell of an image. Both are static: nothing is sorted or counted, so a compiler can follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from turbovlm.maths.constants import positions
from turbovlm.maths.hashing import random_integers


class Sets(Protocol):
    """A partition of the positions ``0 .. N-1`` (prefix tokens belong to neither set)."""

    def sources(self, x: Tensor) -> Tensor:
        """Entries of ``x`` ``(B, N, ...)`` of the source set, ``(B, S, ...)``."""
        ...

    def destinations(self, x: Tensor) -> Tensor:
        """Entries of ``x`` ``(B, N, ...)`` of the destination set, ``(B, D, ...)``."""
        ...

    def source_positions(self, index: Tensor) -> Tensor:
        """Positions of members of the source set, given by their index in it."""
        ...

    def destination_positions(self, index: Tensor) -> Tensor:
        """The same for the destination set."""
        ...

    @property
    def source_count(self) -> int:
        """S."""
        ...

    @property
    def destination_count(self) -> int:
        """D."""
        ...


@dataclass(frozen=True)
class EvenOdd:
    """Even positions of the whole sequence are sources, odd ones destinations (section 3.3).

    Prefix tokens are counted but belong to neither set, so they are never merged nor changed.
    """

    tokens: int
    prefix: int = 0

    @property
    def first_source(self) -> int:
        """First even position that is not a prefix token."""
        return self.prefix + self.prefix % 2

    @property
    def first_destination(self) -> int:
        """First odd position that is not a prefix token."""
        return self.prefix + 1 - self.prefix % 2

    @property
    def source_count(self) -> int:
        """S."""
        return max(0, self.tokens - self.first_source + 1) // 2

    @property
    def destination_count(self) -> int:
        """D."""
        return max(0, self.tokens - self.first_destination + 1) // 2

    def released_order(self, device: torch.device) -> Tensor:
        """``(N,)`` positions as the released code and ToMe leave the survivors of a merge.

        Even ones come first, then odd ones, so that later blocks pair other tokens. More than one
        prefix token, which the released code does not know, stay in front.
        """
        first = positions(0, self.prefix, 1, device)
        even = positions(self.first_source, self.tokens, 2, device)
        odd = positions(self.first_destination, self.tokens, 2, device)
        return torch.cat([first, even, odd])

    def sources(self, x: Tensor) -> Tensor:
        """A strided view: ``(B, S, ...)``."""
        return x[:, self.first_source :: 2]

    def destinations(self, x: Tensor) -> Tensor:
        """A strided view: ``(B, D, ...)``."""
        return x[:, self.first_destination :: 2]

    def source_positions(self, index: Tensor) -> Tensor:
        """``first_source + 2 index``."""
        every = positions(self.first_source, self.tokens, 2, index.device)
        return every.take(index)

    def destination_positions(self, index: Tensor) -> Tensor:
        """``first_destination + 2 index``."""
        every = positions(self.first_destination, self.tokens, 2, index.device)
        return every.take(index)


@dataclass(frozen=True)
class EvenOddWithin(EvenOdd):
    """`EvenOdd` where pairs stay inside a segment.

    Attributes:
        within: ``(B, N)`` int64 segment of each token, ascending.
    """

    within: Tensor = field(kw_only=True)


@dataclass(frozen=True)
class Grid:
    """Any two sets of positions ``(S,)`` and ``(D,)``."""

    source: Tensor
    destination: Tensor

    @property
    def source_count(self) -> int:
        """S."""
        return self.source.shape[0]

    @property
    def destination_count(self) -> int:
        """D."""
        return self.destination.shape[0]

    def sources(self, x: Tensor) -> Tensor:
        """A copy: ``(B, S, ...)``."""
        return x.index_select(1, self.source)

    def destinations(self, x: Tensor) -> Tensor:
        """A copy: ``(B, D, ...)``."""
        return x.index_select(1, self.destination)

    def source_positions(self, index: Tensor) -> Tensor:
        """Looked up."""
        return self.source[index]

    def destination_positions(self, index: Tensor) -> Tensor:
        """Looked up."""
        return self.destination[index]


def grid_sets(
    grid: tuple[int, int], cell: tuple[int, int], seed: Tensor | None, device: torch.device
) -> Grid:
    """One destination in every cell of an image ``grid=(h, w)`` of tokens.

    Args:
        grid: height and width in tokens, at least those of a cell.
        cell: height and width of a cell. Rows and columns beyond the last whole cell are sources.
        seed: ``()`` int64 that draws the destination of each cell; None takes the first token.
        device: of the result.
    """
    height, width = grid
    down, across = cell
    image = positions(0, height * width, 1, device).view(height, width)
    rows, columns = height // down, width // across
    inside = image[: rows * down, : columns * across]
    cells = inside.reshape(rows, down, columns, across).transpose(1, 2).reshape(-1, down * across)
    edge = [
        image[rows * down :].flatten(),
        image[: rows * down, columns * across :].flatten(),
    ]
    if seed is not None:
        count, members = cells.shape
        first = random_integers(count, seed.to(device)) % members
        turned = (first.unsqueeze(1) + torch.arange(members, device=device)) % members
        cells = cells.gather(1, turned)
    return Grid(torch.cat([cells[:, 1:].flatten(), *edge]), cells[:, 0])
