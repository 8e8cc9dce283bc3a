"""The images of a prompt: which positions are theirs, and which of these stay."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbovlm.config.visual_tokens import VisualTokens
from turbovlm.errors import ConfigError, UnsupportedInput
from turbovlm.maths.cells import cells, frames
from turbovlm.maths.leaves import leaf_gains
from turbovlm.maths.select import Selection, enough, keep_tokens, unit_features
from turbovlm.maths.selectors import SELECTORS, Candidates
from turbovlm.plug.language.picture import MARK, NOWHERE, Picture, square
from turbovlm.plug.language.state import LanguageCall, LanguagePatch
from turbovlm.plug.language.trace import ImageTrace


@dataclass(frozen=True)
class Group:
    """Images whose tokens lie alike and that keep the same number.

    Attributes:
        sample: ``(I,)`` row of the batch of each.
        column: ``(I, n)`` positions in the prompt.
        free: ``(m,)`` which of the ``n`` may be dropped.
        picture: how they lie.
        selection: what stays of the ``m`` free ones.
    """

    sample: Tensor
    column: Tensor
    free: Tensor
    picture: Picture
    selection: Selection

    @property
    def kept(self) -> Tensor:
        """``(I, K)`` columns of the free tokens that stay, ascending."""
        return self.column[:, self.free].gather(1, self.selection.kept)

    def features(self, x: Tensor) -> Tensor:
        """``(I, m, C)`` of ``x`` ``(B, N, C)``."""
        return x[self.sample.unsqueeze(1), self.column[:, self.free]]

    def traces(self) -> Iterator[ImageTrace]:
        """One an image."""
        tokens = self.column.shape[1]
        for i, sample in enumerate(self.sample.tolist()):
            owner = torch.arange(tokens, device=self.column.device)
            kept = self.free[self.selection.kept[i]]
            owner[self.free] = kept[self.selection.owner[i]]
            merged = torch.ones(tokens, dtype=torch.bool, device=owner.device)
            merged[self.free] = self.selection.merged[i]
            stays = owner == torch.arange(tokens, device=owner.device)
            yield ImageTrace(
                sample, stays.nonzero()[:, 0], owner, merged, self.column[i], self.picture.place
            )


@dataclass(frozen=True)
class _Image:
    first: int
    tokens: int
    picture: Picture


def groups(patch: LanguagePatch, call: LanguageCall, x: Tensor) -> list[Group]:
    """Choose tokens in every image of the prompt.

    Args:
        patch: the setting and the host's row.
        call: the prompt and the features of its images.
        x: ``(B, N, C)`` what the language model was handed, visual features in place.

    Returns:
        Those groups that lose tokens.

    Raises:
        UnsupportedInput: if placeholders and features do not match.
        ConfigError: if more tokens are asked for than an image has.
    """
    found: list[Group] = []
    for modality, placeholder in patch.tokens.items():
        features = call.features.get(modality)
        if features is None:
            continue
        at = (call.ids == placeholder).nonzero().to(x.device)
        images = _images(patch, call, features, at, modality)
        if sum(i.tokens for i in images) != len(at):
            raise UnsupportedInput(
                f"the prompt has {len(at)} {modality} tokens and the features given are "
                f"{sum(i.tokens for i in images)}: pass whole images, and each with its prompt"
            )
        found += _choose(patch.config, images, at, x)
    return found


def _choose(
    config: VisualTokens, images: Sequence[_Image], at: Tensor, x: Tensor
) -> Iterator[Group]:
    alike: dict[tuple[int, Picture], list[_Image]] = {}
    for image in images:
        alike.setdefault((image.tokens, image.picture), []).append(image)
    for (tokens, picture), members in alike.items():
        first = torch.tensor([m.first for m in members], device=at.device)
        rows = at[first.unsqueeze(1) + torch.arange(tokens, device=at.device)]
        sample, column = rows[:, 0, 0], rows[..., 1]
        free = picture.free(tokens)
        place = None if picture.place is None else picture.place[free]
        free = free.to(at.device)
        if config.keep is not None and _count(config, len(free), place) == len(free):
            continue
        features = x[sample.unsqueeze(1), column[:, free]].detach()
        unit = unit_features(features)
        for which, keep in _counts(config, unit, place):
            if keep < len(free):
                candidates = Candidates(unit[which], features[which], place, config.seed)
                selection = _select(config, candidates, keep)
                yield Group(sample[which], column[which], free, picture, selection)


def _counts(
    config: VisualTokens, unit: Tensor, place: Tensor | None
) -> Iterator[tuple[Tensor | slice, int]]:
    """Which images ``(I, m, d)`` keep how many tokens."""
    tokens = unit.shape[1]
    if config.keep is not None:
        yield slice(None), _count(config, tokens, place)
        return
    assert config.coverage is not None
    least = _least(config, place)
    gains = leaf_gains(unit, tokens, torch.ones_like(unit[..., 0]))
    counts = enough(unit, gains, config.coverage).clamp_min(least).tolist()
    for keep in sorted(set(counts)):
        which = torch.tensor([i for i, k in enumerate(counts) if k == keep], device=unit.device)
        yield which, keep


def _count(config: VisualTokens, tokens: int, place: Tensor | None) -> int:
    """How many of the ``tokens`` of an image stay where ``keep`` says it."""
    keep, least = config.count(tokens), _least(config, place)
    if isinstance(config.keep, int) and keep < least:
        raise ConfigError(
            f"keep={keep} is fewer than the {least} frames or tiles of this image: give a "
            "larger number or floor=False"
        )
    return max(keep, least)


def _least(config: VisualTokens, place: Tensor | None) -> int:
    return frames(place) if place is not None and _floored(config) else 1


def _floored(config: VisualTokens) -> bool:
    return config.floor and config.method == "turbo"


def _select(config: VisualTokens, candidates: Candidates, keep: int) -> Selection:
    scores = SELECTORS[config.method](candidates, keep)
    cell = None
    if _floored(config) and candidates.place is not None:
        cell = cells(candidates.place, keep)
        cell = None if cell is None else cell.to(scores.device)
    return keep_tokens(candidates.unit, scores, keep, cell=cell, merge=config.merge)


def _images(
    patch: LanguagePatch, call: LanguageCall, features: Any, at: Tensor, modality: str
) -> list[_Image]:
    """The images of one modality, in the order of their placeholders ``at`` ``(M, 2)``."""
    layout = patch.row.layout
    if layout in ("runs", "latents"):
        lengths = _runs(at)
        pictures = [square(n) if layout == "runs" else NOWHERE for n in lengths]
    elif layout == "tiles":
        lengths = _runs(at)
        tile = features.shape[1]
        pictures = [square(n, max(1, n // tile)) for n in lengths]
    else:
        lengths = [len(f) for f in features]
        whole = getattr(features, MARK, None)
        known = [getattr(f, MARK, whole) for f in features]
        if layout == "packed" and modality == "image" and None in known:
            raise UnsupportedInput(
                "how the tokens of these images lie is not known, newlines among them: let the "
                "patched model compute the features from pixel_values"
            )
        pictures = [square(n) if p is None else p for n, p in zip(lengths, known, strict=True)]
    images, first = [], 0
    for length, picture in zip(lengths, pictures, strict=True):
        images.append(_Image(first, length, picture))
        first += length
    return images


def _runs(at: Tensor) -> list[int]:
    """Lengths of the runs of positions ``(M, 2)`` that follow each other without a gap."""
    if not len(at):
        return []
    step = at[1:] - at[:-1]
    cut = ((step[:, 0] != 0) | (step[:, 1] != 1)).nonzero()[:, 0] + 1
    edges = [0, *cut.tolist(), len(at)]
    return [b - a for a, b in itertools.pairwise(edges)]
