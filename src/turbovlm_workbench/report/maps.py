"""Merge maps as one picture: a strip of blocks for each setting, or an animation."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from turbovlm_workbench.analyze.maps import KeptMap, MergeStep, PictureMaps
from turbovlm_workbench.report.mergemap import merge_map

MAPS = (".png", ".webp", ".gif")
"""Endings of the files that maps can be written to; the last one is an animation."""
STEPS = 4  # blocks in a strip
SIDE, GAP, LINE = 224, 10, 20  # pixels: of a panel, around it, and of the words above it
SECONDS = 0.7  # of a block in an animation
PAPER, INK, DIM = (255, 255, 255), (28, 31, 35), 0.25
HEAT = ((13, 8, 60), (120, 28, 109), (237, 105, 37), (252, 255, 164))  # dark to bright

Picture = NDArray[np.uint8]
Row = tuple[str, Sequence[tuple[str, Picture]]]
"""Words, and panels with words of their own."""


def heat_map(picture: Picture, strength: NDArray[np.float64]) -> Picture:
    """Strengths from 0 to 1 as colours over a grey picture, (H, W, 3).

    Args:
        picture: uint8 (H, W, 3).
        strength: (h, w).
    """
    height, width = picture.shape[:2]
    rows = np.arange(height) * strength.shape[0] // height
    columns = np.arange(width) * strength.shape[1] // width
    fine = strength[rows][:, columns] ** 0.5 * (len(HEAT) - 1)  # a few patches hold most of it
    stops = np.arange(len(HEAT))
    colours = np.stack([np.interp(fine, stops, [s[c] for s in HEAT]) for c in range(3)], axis=2)
    grey = picture.mean(axis=2, keepdims=True)
    return (0.7 * colours + 0.3 * grey).round().astype(np.uint8)


def kept_picture(found: KeptMap) -> Picture:
    """The picture with the tokens that were dropped or averaged away dimmed, outlines between."""
    painted = merge_map(found.picture, np.arange(found.kept.size).reshape(found.kept.shape))
    factor = painted.shape[0] // found.picture.shape[0]
    fine = found.picture.repeat(factor, 0).repeat(factor, 1).astype(np.float64)
    rows = np.arange(fine.shape[0]) * found.kept.shape[0] // fine.shape[0]
    columns = np.arange(fine.shape[1]) * found.kept.shape[1] // fine.shape[1]
    shown = found.kept[rows][:, columns][..., None]
    return np.where(shown, fine, DIM * fine + (1 - DIM) * 255).round().astype(np.uint8)


def some_steps(steps: Sequence[MergeStep], number: int = STEPS) -> list[MergeStep]:
    """So many of the blocks, evenly spread, the last one among them."""
    count = min(number, len(steps))
    return [steps[(index + 1) * len(steps) // count - 1] for index in range(count)]


def map_strip(found: PictureMaps) -> Image.Image:
    """The picture and where the guide looks, then a row of maps for each setting."""
    shown = ("as the model sees it", found.picture), ("guide", heat_map(found.picture, found.guide))
    rows: list[Row] = [(f"unmerged: {found.words['unmerged']}", shown)]
    for side, steps in found.sides.items():
        maps = [
            (f"block {step.block}: {step.tokens} tokens", merge_map(found.picture, step.owner))
            for step in some_steps(steps)
        ]
        rows.append((f"{side}: {found.words[side]}", maps))
    return _sheet(rows, found.name)


def kept_strip(found: KeptMap) -> Image.Image:
    """The picture, the tokens that stay, and whom each of the others is most like."""
    panels = [
        ("as the model sees it", found.picture),
        ("visual tokens that stay", kept_picture(found)),
        ("the kept one most like it", merge_map(found.picture, found.owner)),
    ]
    words = "; ".join(f"{side}: {text}" for side, text in found.words.items())
    return _sheet([(words, panels)], found.name)


def map_file(found: Sequence[PictureMaps], kind: str) -> bytes:
    """All pictures below one another, as a still, or with one block a frame.

    Args:
        found: at least one.
        kind: one of `MAPS`.
    """
    if kind != ".gif":
        return picture_bytes(_stack([map_strip(one) for one in found]), kind)
    longest = max(len(steps) for one in found for steps in one.sides.values())
    frames = [_stack([_frame(one, number) for one in found]) for number in range(longest + 1)]
    flat = [frame.quantize(128) for frame in frames]
    file = io.BytesIO()
    pause = [int(1000 * SECONDS)] * len(flat)
    pause[-1] *= 3
    flat[0].save(file, "gif", save_all=True, append_images=flat[1:], duration=pause, loop=0)
    return file.getvalue()


def kept_file(found: Sequence[KeptMap], kind: str) -> bytes:
    """All pictures below one another."""
    return picture_bytes(_stack([kept_strip(one) for one in found]), kind)


def picture_bytes(picture: Image.Image, kind: str) -> bytes:
    """The content of a file of this ending."""
    file = io.BytesIO()
    options: dict[str, Any] = (
        {"quality": 85, "method": 6} if kind == ".webp" else {"optimize": True}
    )
    picture.save(file, kind.removeprefix("."), **options)
    return file.getvalue()


def _frame(found: PictureMaps, number: int) -> Image.Image:
    """The picture and the map of every setting after ``number`` merging blocks."""
    panels = [("as the model sees it", found.picture)]
    for side, steps in found.sides.items():
        step = steps[min(number, len(steps)) - 1] if number else None
        text = side if step is None else f"{side}, block {step.block}: {step.tokens}"
        panels.append(
            (text, found.picture if step is None else merge_map(found.picture, step.owner))
        )
    panels.append(("guide", heat_map(found.picture, found.guide)))
    return _sheet([("", panels)], found.name)


def _sheet(rows: Sequence[Row], title: str) -> Image.Image:
    """Rows of panels with words above them."""
    columns = max(len(panels) for _, panels in rows)
    width = columns * (SIDE + GAP) + GAP
    row_height = 2 * LINE + SIDE + GAP
    sheet = Image.new("RGB", (width, len(rows) * row_height + LINE), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    pen.text((GAP, 3), title, INK, font)
    for number, (words, panels) in enumerate(rows):
        top = LINE + number * row_height
        pen.text((GAP, top + 2), _shortened(words, width // 7), INK, font)
        for column, (text, panel) in enumerate(panels):
            left = GAP + column * (SIDE + GAP)
            pen.text((left, top + LINE + 2), _shortened(text, SIDE // 7), INK, font)
            whole = Image.fromarray(panel)
            scale = SIDE / max(whole.size)
            size = round(whole.width * scale), round(whole.height * scale)
            fitting = whole.resize(size, Image.Resampling.LANCZOS)
            sheet.paste(fitting, (left, top + 2 * LINE))
    return sheet


def _stack(sheets: Sequence[Image.Image]) -> Image.Image:
    width, height = max(s.width for s in sheets), sum(s.height for s in sheets)
    whole = Image.new("RGB", (width, height), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 3] + "..."


def picture_uri(picture: Image.Image) -> str:
    """A ``data:`` address, small enough that a page can hold dozens."""
    data = base64.b64encode(picture_bytes(picture, ".webp")).decode()
    return f"data:image/webp;base64,{data}"
