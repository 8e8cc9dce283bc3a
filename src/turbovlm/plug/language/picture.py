"""Where the visual tokens of an image lie, and which of them must stay."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import UnsupportedInput
from turbovlm.plug.language.row import LanguageRow
from turbovlm.plug.names import attribute

MARK = "turbo_picture"
"""Attribute of a feature tensor that says how its tokens lie."""


@dataclass(frozen=True, eq=False)
class Picture:
    """How the tokens of one image lie; one object for all images that lie alike.

    Attributes:
        place: ``(n, 3)`` fp32: frame (or tile, or thumbnail) and the height and width of the
            token's centre in it, from 0 to 1; None where tokens lie nowhere.
        fixed: ``(n,)`` bool: newline tokens, which always stay; None where there are none.
    """

    place: Tensor | None
    fixed: Tensor | None = None

    def free(self, tokens: int) -> Tensor:
        """Indices of the tokens that may be dropped, ``(m,)`` ascending."""
        if self.fixed is None:
            return torch.arange(tokens)
        return (~self.fixed).nonzero()[:, 0]


NOWHERE = Picture(None)


@functools.cache
def grid_picture(frames: int, height: int, width: int) -> Picture:
    """Tokens in rows, frame after frame."""
    axes = (
        torch.arange(frames, dtype=torch.float32),
        (torch.arange(height) + 0.5) / height,
        (torch.arange(width) + 0.5) / width,
    )
    return Picture(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))


@functools.cache
def square(tokens: int, frames: int = 1) -> Picture:
    """``tokens`` in ``frames`` squares; nowhere if they do not fill them."""
    side = math.isqrt(tokens // frames)
    return grid_picture(frames, side, side) if side * side * frames == tokens else NOWHERE


@functools.cache
def square_and_newline(tokens: int, frames: int) -> Picture:
    """Squares, frame after frame, and one newline token at the end."""
    before = square(tokens - 1, frames)
    last = torch.arange(tokens) == tokens - 1
    if before.place is None:
        return Picture(None, last)
    return Picture(torch.cat([before.place, before.place[-1:]]), last)


def mark(
    row: LanguageRow, outer: nn.Module, given: Mapping[str, Any], features: Any, modality: str
) -> None:
    """Note on each image's features how its tokens lie, where the arguments say so.

    Args:
        row: the host.
        outer: its model.
        given: arguments of ``get_image_features`` or ``get_video_features``.
        features: what came out: a sequence of ``(n, C)``, or ``(images, n, C)``.
        modality: ``"image"`` or ``"video"``.
    """
    pictures: Sequence[Picture] = ()
    if row.layout == "grid":
        side = math.prod(int(attribute(outer, name)) for name in row.patch)
        sizes = given.get(f"{modality}_grid_thw")
        sizes = [] if sizes is None else torch.as_tensor(sizes).tolist()
        pictures = [grid_picture(t, h // side, w // side) for t, h, w in sizes]
    elif row.layout == "sizes" and given.get("image_sizes") is not None:
        side = math.prod(int(attribute(outer, name)) for name in row.patch)
        sizes = torch.as_tensor(given["image_sizes"]).tolist()
        pictures = [grid_picture(1, h // side, w // side) for h, w in sizes]
    elif row.layout == "packed" and modality == "video" and isinstance(features, Tensor):
        frames = given["pixel_values_videos"].shape[1]
        setattr(features, MARK, square_and_newline(features.shape[1], frames))
    for feature, picture in zip(features, pictures, strict=False):
        setattr(feature, MARK, picture)


def mark_packed(
    pack: Any, args: tuple[Any, ...], kwargs: dict[str, Any], packed: Sequence[Tensor]
) -> None:
    """Note on packed features how their tokens lie.

    The host's own ``pack_image_features`` runs on coordinates in the place of features, so that
    its rules of tiles, unpadding, shrinking and newlines are followed whatever they are.
    """
    given = inspect.signature(pack).bind(*args, **kwargs).arguments
    features: Sequence[Tensor] = given["image_features"]
    given["image_features"] = [_coordinates(f) for f in features]
    if given.get("image_newline") is not None:
        given["image_newline"] = features[0].new_full((4,), -1.0, dtype=torch.float32)
    coordinates, _ = pack(**given)
    for rows, tiles, feature in zip(coordinates, features, packed, strict=True):
        setattr(feature, MARK, _read(rows.cpu(), len(tiles)))


def _coordinates(tiles: Tensor) -> Tensor:
    """``(tiles, n, 4)``: tile, height and width in it, and 0 for a token that is no newline."""
    place = square(tiles.shape[1]).place
    if place is None:
        raise UnsupportedInput(
            f"{tiles.shape[1]} tokens a tile fill no square, so the newline tokens are not known: "
            "use vision_feature_select_strategy='default'"
        )
    place = place.repeat(len(tiles), 1, 1).to(tiles.device)
    place[:, :, 0] = torch.arange(len(tiles), device=tiles.device)[:, None]
    return torch.cat([place, torch.zeros_like(place[..., :1])], -1)


def _read(rows: Tensor, tiles: int) -> Picture:
    """From packed coordinates: the thumbnail is frame 0, all tiles together are frame 1."""
    fixed = rows[:, 3] < -0.5
    place = rows[:, :3].clone()
    if tiles > 1:
        base = int((~fixed).nonzero()[0, 0]) + _thumbnail(place[:, 0])
        free = torch.arange(base, len(place))[~fixed[base:]]
        newline = fixed[base:].nonzero()[:, 0]
        width = int(newline[0]) if len(newline) else len(free)
        height = math.ceil(len(free) / width)
        whole = grid_picture(1, height, width).place
        assert whole is not None
        place[free] = whole[: len(free)]
        place[base:, 0] = 1
    # a newline lies where the token before it does
    before = torch.where(fixed, -1, torch.arange(len(place))).cummax(0).values.clamp_min(0)
    return Picture(place[before], fixed if bool(fixed.any()) else None)


def _thumbnail(tile: Tensor) -> int:
    """Leading tokens of tile 0."""
    other = (tile.round() != 0).nonzero()
    return int(other[0, 0]) if len(other) else len(tile)
