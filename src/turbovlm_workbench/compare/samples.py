"""A few images shown in full: the output with and without merging, and who was merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import turbovlm
from turbovlm import hosts
from turbovlm.plug.encoder.find import find_towers
from turbovlm.plug.language.trace import ImageTrace
from turbovlm_workbench.compare.places import patch_grid, places, visual_grid
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
    prefix = 0
    shown = [task.prepare.show(pixels[row]) for row in range(len(pixels))]
    if keep_of(settings) is not None:
        owners = [_kept(image, one) for image, one in zip(run.visual.images, shown, strict=True)]
    else:
        tower = find_towers(task.encoder(task.model), hosts.rows(), hosts.REFUSALS)[0]
        where = places(tower, lambda: task.encode(task.model, pixels), pixels)
        owners = [place.owners(run.trace) for place in where]
        prefix = run.trace.prefix_tokens
    words = zip(task.words(before), task.words(after), strict=True)
    return [
        Sample(
            name=images.name(index),
            picture=shown[row],
            unmerged=unmerged,
            merged=merged,
            owner=owners[row].numpy(),
            tokens=prefix + len(owners[row].unique()),
        )
        for row, (index, (unmerged, merged)) in enumerate(zip(indices, words, strict=True))
    ]


def _kept(image: ImageTrace, picture: NDArray[np.uint8]) -> Tensor:
    """Of every visual token the one that stands for it in the prompt: int64 (h, w)."""
    owner = image.owner.cpu()
    if (grid := visual_grid(image)) is None:
        grid = patch_grid(len(owner), *picture.shape[:2])
    return owner.reshape(grid)
