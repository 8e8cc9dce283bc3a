"""Pictures and what a LLaVA's vision tower makes of them, reduced by every criterion."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from criteria import CRITERIA, Reduced, Seen, chosen, coarse_places, coarse_side, whole
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

import turbovlm
from turbovlm.measure import flops
from turbovlm.plug.language.picture import square
from turbovlm_workbench.metrics.intervals import interval

BATCH = 50
KEEPS = (2, 4, 9, 16)
TOWER_R = 8  # of `merge`

Scores = dict[str, np.ndarray]
"""One value a picture; NaN where it has none."""


class Pictures:
    """Some pictures of one size, and a LLaVA of a ViT of transformers that reads its last states.

    Args:
        model: a LlavaForConditionalGeneration.
        pixels: ``(I, 3, H, W)`` as its tower takes them.
    """

    def __init__(self, model: Any, pixels: Tensor) -> None:
        self.model, self.pixels = model, pixels
        self.tower: Any = model.model.vision_tower
        self.tokens: int = model.config.image_seq_length
        place = square(self.tokens).place
        assert place is not None
        self.place = place

    @torch.inference_mode()
    def see(self) -> Seen:
        """The visual tokens of all scenes, and what VisionZip reads of the tower."""
        tower = self.tower
        keys: list[Tensor] = []
        hook = tower.layers[-1].attention.k_proj.register_forward_hook(
            lambda _, __, out: keys.append(out[:, 1:])
        )
        before = tower.config._attn_implementation
        tower.set_attn_implementation("eager")
        features, attended = [], []
        for x in self.pixels.split(BATCH):
            out = tower(x, output_hidden_states=True, output_attentions=True)
            features.append(self._projected(out.hidden_states[-1][:, 1:]))
            attended.append(out.attentions[-1].mean((1, 2))[:, 1:])
        tower.set_attn_implementation(before)
        hook.remove()
        return Seen(torch.cat(features), self.place, torch.cat(attended), torch.cat(keys))

    @torch.inference_mode()
    def resized(self, keep: int) -> Reduced:
        """Pictures of fewer patches, at least ``keep``, each token at the nearest position."""
        side = coarse_side(keep)
        features = []
        for x in self.pixels.split(BATCH):
            size = (side * self.tower.config.patch_size,) * 2
            small = F.interpolate(x, size, mode="bilinear", antialias=True)
            out = self.tower(small, interpolate_pos_encoding=True, output_hidden_states=True)
            features.append(self._projected(out.hidden_states[-1][:, 1:]))
        at = coarse_places(round(self.tokens**0.5), side)
        return Reduced(torch.cat(features), at.expand(len(self.pixels), -1))

    @torch.inference_mode()
    def merged(self, config: turbovlm.Merge) -> tuple[Seen, Tensor]:
        """Visual tokens with merging in the tower, all positions restored, and the survivors'
        positions ``(I, M)``."""
        tower = self.tower
        features, survivors = [], []
        with turbovlm.applied(tower, config) as run:
            for x in self.pixels.split(BATCH):
                out = tower(x, output_hidden_states=True)
                features.append(self._projected(out.hidden_states[-1][:, 1:]))
                kept = run.traces[-1].survivors()[:, 1:] - 1
                survivors.append(kept.sort(1).values)
        joined = torch.cat(features)
        none = torch.zeros(*joined.shape[:2])
        return Seen(joined, self.place, none, joined), torch.cat(survivors)

    def _projected(self, states: Tensor) -> Tensor:
        return self.model.model.multi_modal_projector(states)


def criteria(
    pictures: Pictures, seen: Seen, keep: int, names: Collection[str]
) -> Iterator[tuple[str, list[Reduced]]]:
    """The criteria of these names and those in the tower with what they leave; several draws of
    what is random."""
    yield from chosen(seen, keep, names)
    yield "resize", [pictures.resized(keep)]
    yield "tome", [in_tower(pictures, keep)]
    merged, _ = pictures.merged(turbovlm.Merge(r=TOWER_R))
    yield "merge", [CRITERIA["ours"](merged, keep)]
    left = pictures.tokens - pictures.tower.config.num_hidden_layers * TOWER_R
    more = min(left, keep + paid(pictures))
    yield "merge, equal cost", [CRITERIA["ours"](merged, more)]


def in_tower(pictures: Pictures, keep: int) -> Reduced:
    """The tokens that merging by redundancy in the tower leaves, each once."""
    r = removals(pictures.tokens, keep, pictures.tower.config.num_hidden_layers)
    seen, at = pictures.merged(turbovlm.Merge(r=r, method="redundancy"))
    features = seen.features.gather(1, at.unsqueeze(2).expand(-1, -1, seen.features.shape[2]))
    return Reduced(features, at)


def removals(tokens: int, keep: int, blocks: int) -> tuple[int, ...]:
    """As many a block, or the same share where a block cannot merge that many."""
    gone = tokens - keep
    even = tuple(gone // blocks + (block < gone % blocks) for block in range(blocks))
    if keep + even[-1] >= 2 * even[-1]:
        return even
    left = [round(tokens * (keep / tokens) ** (b / blocks)) for b in range(blocks + 1)]
    return tuple(before - after for before, after in itertools.pairwise(left))


def paid(pictures: Pictures) -> int:
    """Visual tokens that the language model reads for what merging spares the tower."""
    pixels, tower = {"pixel_values": pictures.pixels[:1]}, pictures.tower
    before = flops(tower, pixels).macs
    with turbovlm.applied(tower, turbovlm.Merge(r=TOWER_R)):
        after = flops(tower, pixels).macs
    language = pictures.model.model.language_model
    each = sum(p.numel() for p in language.layers.parameters())
    return int((before - after) // each)


def difference(mine: np.ndarray, ours: np.ndarray) -> list[float]:
    """Mean difference and its interval, over the pictures that have both."""
    both = ~np.isnan(mine) & ~np.isnan(ours)
    return list(interval((mine - ours)[both].tolist()))


def measure(
    pictures: Pictures,
    seen: Seen,
    score: Callable[[Reduced], Scores],
    names: Collection[str],
    gaps: Collection[str],
) -> list[dict[str, Any]]:
    """One row a criterion and count, the whole prompt first.

    Args:
        pictures: with their tower.
        seen: all of their tokens.
        score: of what is left of these.
        names: of the criteria on projected features.
        gaps: the scores of which the difference to ours is told.
    """
    rows = [row_of("whole", pictures.tokens, score(whole(seen)), None, gaps)]
    for part in track(KEEPS, "keep"):
        keep = round(pictures.tokens / part)
        ours: Scores | None = None
        for name, given in criteria(pictures, seen, keep, names):
            drawn = [score(one) for one in given]
            mean = {key: np.mean([one[key] for one in drawn], axis=0) for key in drawn[0]}
            ours = mean if ours is None else ours
            row = row_of(name, given[0].at.shape[1], mean, ours, gaps)
            rows.append(row | {"keep": f"1/{part}"})
    return rows


def row_of(
    name: str, tokens: int, found: Scores, ours: Scores | None, gaps: Collection[str]
) -> dict[str, Any]:
    """Means, and the differences to ours of what the intervals are for."""
    row: dict[str, Any] = {"criterion": name, "tokens": tokens}
    some = {key: values for key, values in found.items() if not np.isnan(values).all()}
    row |= {key: float(np.nanmean(values)) for key, values in some.items()}
    if ours is not None and name != "ours":
        row["minus ours"] = {key: difference(found[key], ours[key]) for key in gaps if key in some}
    return row
