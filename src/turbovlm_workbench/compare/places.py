"""Where the tokens of an encoder lie in the pictures of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbovlm.errors import ModelError
from turbovlm.plug.encoder.find import Tower
from turbovlm.plug.encoder.trace import Trace
from turbovlm.plug.language.trace import ImageTrace
from turbovlm.plug.names import attribute, bind
from turbovlm.plug.swap import parameters_of, plain_class
from turbovlm_workbench.load.own_size import Pictures, Pixels


@dataclass(frozen=True, eq=False)
class Place:
    """Where the patches of one picture are in what its encoder computes.

    Attributes:
        row: of the batch.
        first: the first of its patches in the sequence.
        grid: rows and columns of patches.
        order: ``(h w,)`` int64 which patch, counted row by row, each one of the sequence is; None
            where they lie row by row.
    """

    row: int
    first: int
    grid: tuple[int, int]
    order: Tensor | None = None

    def lay(self, values: Tensor) -> Tensor:
        """Values of the patches in the order of the sequence, ``(h w,)``, as ``(h, w)``."""
        if self.order is not None:
            values = torch.empty_like(values).index_copy_(0, self.order, values)
        return values.reshape(self.grid)

    def owners(self, trace: Trace, blocks: int | None = None) -> Tensor:
        """For each patch which token stands for it after so many blocks: int64 ``(h, w)``."""
        whole = trace.representative(blocks).cpu()
        owner = whole[self.row if len(whole) > 1 else 0]
        return self.lay(owner[self.first : self.first + math.prod(self.grid)])


def places(tower: Tower, run: Callable[[], object], pixels: Pixels) -> list[Place]:
    """The places of the pictures of a batch.

    Args:
        tower: the encoder.
        run: runs it on the batch once.
        pixels: the batch.

    Raises:
        ModelError: if the tokens do not form one grid a picture.
    """
    given, length = _watched(tower, run)
    if tower.row.packed is not None:
        found = _packed(tower, given)
        if len(found) == len(pixels):
            return found
    elif not isinstance(pixels, Pictures):
        prefix = tower.row.prefix_of(tower.module)
        grid = patch_grid(length - prefix, *pixels.shape[2:])
        return [Place(row, prefix, grid) for row in range(len(pixels))]
    raise ModelError(
        "the model sees a picture in tiles, so that its tokens form no one grid: it cannot be drawn"
    )


def _watched(tower: Tower, run: Callable[[], object]) -> tuple[dict[str, Any], int]:
    """The arguments of the tower by name, and how many tokens enter its first block."""
    names = parameters_of(plain_class(tower.module).forward)
    seen: dict[str, Any] = {}
    lengths: list[int] = []

    def inside(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lengths.append((*args, *kwargs.values())[0].shape[-2])

    def around(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.update(bind(names, args, kwargs))

    handles = [
        tower.module.register_forward_pre_hook(around, with_kwargs=True),
        tower.blocks[0].register_forward_pre_hook(inside, with_kwargs=True),
    ]
    try:
        with torch.inference_mode():
            run()
    finally:
        for handle in handles:
            handle.remove()
    if not lengths:
        raise ModelError("the encoder did not run on these pictures: they cannot be drawn")
    return seen, lengths[0]


def visual_grid(image: ImageTrace) -> tuple[int, int] | None:
    """Rows and columns of the visual tokens of a picture; None where they lie in no grid."""
    place = [] if image.place is None else image.place.tolist()
    grid = len({row[1] for row in place}), len({row[2] for row in place})
    return grid if math.prod(grid) == len(image.owner) else None


def patch_grid(patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of ``patches`` square patches on an image.

    Raises:
        ModelError: if they form no grid.
    """
    rows = round(math.sqrt(patches * height / width))
    columns = patches // max(rows, 1)
    if rows * columns != patches:
        raise ModelError(
            f"{patches} tokens form no grid over {height} x {width} pixels, so that they cannot be "
            "drawn: leave out --html"
        )
    return rows, columns


def _packed(tower: Tower, given: Mapping[str, Any]) -> list[Place]:
    packed = tower.row.packed
    assert packed is not None
    sizes = given.get(packed.grid)
    if packed.side is None:
        grids = [(h, w) for t, h, w in torch.as_tensor(sizes).tolist() for _ in range(t)]
    else:
        side = attribute(tower.module, packed.side)
        if sizes is None:
            pixels: Tensor = given["pixel_values"]
            sizes = [tuple(pixels.shape[-2:])] * len(pixels)
        grids = [(h // side, w // side) for h, w in torch.as_tensor(sizes).tolist()]
    cell = 1 if packed.cell is None else int(attribute(tower.module, packed.cell))
    window = None
    if packed.window is not None:
        patch = int(attribute(tower.module, packed.patch))
        window = int(attribute(tower.module, packed.window)) // patch // cell
    found, first = [], 0
    for grid in grids:
        found.append(Place(0, first, grid, packed_order(grid, cell, window)))
        first += math.prod(grid)
    return found


def packed_order(grid: tuple[int, int], cell: int, window: int | None) -> Tensor:
    """Which patch, counted row by row, each one of a packed sequence is: ``(h w,)`` int64.

    Args:
        grid: rows and columns of patches.
        cell: side in patches of the cells whose patches follow one another.
        window: side in cells of the windows whose cells follow one another; None for none.
    """
    height, width = grid[0] // cell, grid[1] // cell
    patches = torch.arange(grid[0] * grid[1]).view(height, cell, width, cell).transpose(1, 2)
    cells = patches.reshape(height * width, cell * cell)
    if window is not None:
        row, column = torch.arange(height)[:, None], torch.arange(width)[None]
        across = -(-width // window)
        home = (row // window) * across + column // window
        inside = (row % window) * window + column % window
        cells = cells[(home * window**2 + inside).flatten().argsort()]
    return cells.flatten()
