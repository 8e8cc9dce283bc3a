"""Who was merged with whom, block by block, and where the guide looks, over the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import turbovlm
from turbovlm import hosts
from turbovlm.config import Merge, VisualTokens
from turbovlm.errors import ModelError, NotApplied
from turbovlm.plug.encoder.find import Tower, find_towers
from turbovlm.plug.encoder.trace import BlockRecord, Trace
from turbovlm_workbench.compare.places import Place, places, visual_grid
from turbovlm_workbench.load.own_size import Pixels
from turbovlm_workbench.tasks.image import ImageTask


@dataclass(frozen=True, eq=False)
class MergeStep:
    """The groups after one block.

    Attributes:
        block: from 1.
        owner: int64 (h, w), patches with the same number are one token.
        tokens: of the picture that are left, those that lead the sequence included.
    """

    block: int
    owner: NDArray[np.int64]
    tokens: int


@dataclass(frozen=True, eq=False)
class PictureMaps:
    """One picture.

    Attributes:
        name: of the picture.
        picture: what the model saw, uint8 (H, W, 3).
        guide: float (h, w), attention of the unmerged model's guide, mean over its blocks; the
            largest is 1.
        sides: by the name of the setting, the blocks that merge.
        words: what the model makes of the picture, by the name of the setting, unmerged first.
    """

    name: str
    picture: NDArray[np.uint8]
    guide: NDArray[np.float64]
    sides: Mapping[str, tuple[MergeStep, ...]]
    words: Mapping[str, str]


@torch.inference_mode()
def picture_maps(
    task: ImageTask[Any], images: Mapping[str, Image.Image], settings: Mapping[str, Merge]
) -> list[PictureMaps]:
    """Run ``task.model`` on a few images with and without merging; it is left as it was.

    Args:
        task: a model whose encoder's tokens form a grid.
        images: by name.
        settings: by name.

    Raises:
        ModelError: if the tokens do not form a grid over the image.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    pixels = task.pixels(list(images.values()))
    encoder = task.encoder(task.model)
    tower = find_towers(encoder, hosts.rows(), hosts.REFUSALS)[0]
    where = places(tower, lambda: task.encode(task.model, pixels), pixels)
    guides = _guides(task, tower, pixels, where)
    said = {"unmerged": task.words(task.outputs(task.model, pixels))}
    traces: dict[str, Trace] = {}
    for name, merge in settings.items():
        with turbovlm.applied(task.model, merge) as run:
            said[name] = task.words(task.outputs(task.model, pixels))
            traces[name] = run.trace
    return [
        PictureMaps(
            name=name,
            picture=task.prepare.show(pixels[row]),
            guide=guides[row],
            sides={side: _steps(trace, where[row]) for side, trace in traces.items()},
            words={side: texts[row] for side, texts in said.items()},
        )
        for row, name in enumerate(images)
    ]


def _guides(
    task: ImageTask[Any], tower: Tower, pixels: Pixels, where: Sequence[Place]
) -> list[NDArray[np.float64]]:
    """For each picture the guide's attention, mean over the blocks, at most 1: float (h, w)."""
    seen: list[Tensor] = []

    def note(record: BlockRecord) -> None:
        seen.append(record.value[:, record.prefix_tokens :].double().cpu())

    with (
        turbovlm.applied(task.encoder(task.model), Merge(r=0), record=False),
        turbovlm.recording(tower.module, observe=note),
    ):
        task.encode(task.model, pixels)
    mean = torch.stack(seen).mean(0)
    laid = [place.lay(mean[n, : math.prod(place.grid)]) for n, place in enumerate(where)]
    return [(guide / guide.max()).numpy() for guide in laid]


def _steps(trace: Trace, place: Place) -> tuple[MergeStep, ...]:
    steps = []
    for block, plan in enumerate(trace.plans, start=1):
        if plan is not None:
            owner = place.owners(trace, block)
            tokens = trace.prefix_tokens + len(owner.unique())
            steps.append(MergeStep(block, owner.numpy(), tokens))
    return tuple(steps)


@dataclass(frozen=True, eq=False)
class KeptMap:
    """Which visual tokens of a picture the language model got.

    Attributes:
        name: of the picture.
        picture: what the model saw, uint8 (H, W, 3).
        owner: int64 (h, w), for each visual token the kept one that is most like it.
        kept: bool (h, w).
        words: what the model makes of the picture, with all tokens and with these.
    """

    name: str
    picture: NDArray[np.uint8]
    owner: NDArray[np.int64]
    kept: NDArray[np.bool_]
    words: Mapping[str, str]


@torch.inference_mode()
def kept_maps(
    task: ImageTask[Any], images: Mapping[str, Image.Image], config: VisualTokens
) -> list[KeptMap]:
    """Run a vision-language model on a few images with all visual tokens and with fewer.

    Raises:
        ModelError: if the visual tokens of a picture lie in no grid.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    found = []
    for name, image in images.items():
        pixels = task.pixels([image])
        before = task.words(task.outputs(task.model, pixels))[0]
        with turbovlm.applied(task.model, config) as run:
            after = task.words(task.outputs(task.model, pixels))[0]
        try:
            trace = run.visual.images[0]
        except NotApplied as error:
            raise ModelError(f"{config} leaves {name} all its visual tokens: keep fewer") from error
        if (grid := visual_grid(trace)) is None:
            raise ModelError(f"the visual tokens of {name} lie in no grid: they cannot be drawn")
        kept = torch.zeros(len(trace.owner), dtype=torch.bool)
        kept[trace.kept.cpu()] = True
        found.append(
            KeptMap(
                name,
                task.prepare.show(pixels[0]),
                trace.owner.cpu().reshape(grid).numpy(),
                kept.reshape(grid).numpy(),
                {"all tokens": before, f"{int(kept.sum())} of {len(kept)} tokens": after},
            )
        )
    return found


def merged_early(steps: Sequence[MergeStep]) -> NDArray[np.float64]:
    """For each patch, the share of the merging blocks after which it is one of a group: float
    (h, w), 1 where it was merged by the first of them and 0 where it never was."""
    joined = [np.bincount(s.owner.ravel())[s.owner] > 1 for s in steps]
    return np.mean(joined, axis=0)
