"""A few images shown in full: the output with and without merging, and who was merged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import turbovlm
from turbovlm.api import Run
from turbovlm.errors import ModelError
from turbovlm_workbench.compare.rows import BenchReport
from turbovlm_workbench.compare.titles import line_of
from turbovlm_workbench.data.images import Images
from turbovlm_workbench.settings import Settings, keep_of
from turbovlm_workbench.tasks.image import ImageTask


@dataclass(frozen=True, eq=False)
class Sample:
    """One image under one setting.

    Attributes:
        name: of the image.
        picture: what the model saw, uint8 (H, W, 3).
        unmerged: the unmerged model's output in words.
        merged: the merged model's.
        owner: for every patch, which token stands for it after the last block, or in the prompt of
            a language model: int64 (h, w).
        tokens: how many are left there.
    """

    name: str
    picture: NDArray[np.uint8]
    unmerged: str
    merged: str
    owner: NDArray[np.int64]
    tokens: int

    @property
    def same(self) -> bool:
        """Whether merging left the output as it was."""
        return self.unmerged == self.merged


def show_some(
    task: ImageTask[Any], images: Images, report: BenchReport, number: int = 6
) -> tuple[list[Sample], str]:
    """Samples from all over ``images``, under the advised setting or else a middle one.

    Returns:
        The samples and the name of the setting.
    """
    variants = {row.name: row.settings for row in report.rows if row.settings}
    line = line_of(next(iter(variants.values())))
    first = [name for name, settings in variants.items() if line_of(settings) == line]
    name = report.advised or first[len(first) // 2]
    number = min(number, len(images))
    indices = [index * len(images) // number for index in range(number)]
    return samples(task, images, indices, variants[name]), name


def samples(
    task: ImageTask[Any], images: Images, indices: Sequence[int], settings: Settings
) -> list[Sample]:
    """Run ``task.model`` as it is and with ``settings`` on a few images; it is left as it was.

    Raises:
        ModelError: if the tokens do not form a grid over the image.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    pixels = task.pixels([images.image(index) for index in indices])
    before = task.outputs(task.model, pixels)
    with turbovlm.applied(task.model, *settings) as run:
        after = task.outputs(task.model, pixels)
    owners, tokens = _visual(run) if keep_of(settings) is not None else _merged(run, len(pixels))
    grid = patch_grid(owners.shape[1], *pixels.shape[2:])
    words = zip(task.words(before), task.words(after), strict=True)
    return [
        Sample(
            name=images.name(index),
            picture=task.prepare.show(pixels[row]),
            unmerged=unmerged,
            merged=merged,
            owner=owners[row].reshape(grid).numpy(),
            tokens=tokens,
        )
        for row, (index, (unmerged, merged)) in enumerate(zip(indices, words, strict=True))
    ]


def _merged(run: Run, images: int) -> tuple[Tensor, int]:
    """Of every patch ``(B, N)`` the token that stands for it, and how many tokens are left."""
    trace = run.trace
    owners = trace.representative().cpu().expand(images, -1)[:, trace.prefix_tokens :]
    return owners, trace.tokens[-1]


def _visual(run: Run) -> tuple[Tensor, int]:
    """The same of the tokens that the language model got."""
    seen = run.visual.images
    if len({len(image.owner) for image in seen}) > 1:
        raise ModelError("the images have different numbers of tokens: leave out --html")
    return torch.stack([image.owner.cpu() for image in seen]), len(seen[0].kept)


def patch_grid(patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of ``patches`` square patches on an image."""
    rows = round(math.sqrt(patches * height / width))
    columns = patches // max(rows, 1)
    if rows * columns != patches:
        raise ModelError(
            f"{patches} tokens form no grid over {height} x {width} pixels, so that they cannot be "
            "drawn: leave out --html"
        )
    return rows, columns
