"""Frechet inception distance, and the features that it is taken over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from turbovlm.errors import InputError, ModelError, require
from turbovlm_workbench.checkpoint import cause, read_weights
from turbovlm_workbench.data.images import read_image
from turbovlm_workbench.load.loaded import (
    Captioner,
    Classifier,
    LoadedModel,
    embedding_of,
    vision_tower,
)
from turbovlm_workbench.load.models import load_model

BATCH = 32
Progress = Callable[[str, int, int], object]


class Features(nn.Module):
    """Pixels to one vector per image, by any encoder that `load_model` loads.

    Of an embedder it is the embedding, of a captioner the mean token of its vision tower, and of
    a classifier what its last layer reads.

    Args:
        loaded: the encoder.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.loaded, self.model = loaded, loaded.model
        with torch.inference_mode():
            blank = loaded.pixels([Image.new("RGB", (64, 64))])
            self.num_features = int(self(blank).shape[-1])

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, D) of pixels (B, 3, H, W)."""
        loaded, model = self.loaded, self.model
        if isinstance(loaded, Captioner):
            return vision_tower(model)(pixels).last_hidden_state.mean(1).float()
        if not isinstance(loaded, Classifier):
            return embedding_of(model(pixels))
        read: list[Tensor] = []
        handle = _head(loaded).register_forward_pre_hook(lambda _, args: read.append(args[0]))
        try:
            model(pixels)
        finally:
            handle.remove()
        return read[-1].float()

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The model's own preprocessing of B images: (B, 3, H, W)."""
        return self.loaded.pixels(images)


def load_features(name: str, device: torch.device) -> Features:
    """The features of an encoder, in float32 on ``device``.

    Raises:
        ModelError, UnknownArchitecture, MissingExtra: as `load_model`.
    """
    loaded = load_model(name)
    loaded.model.to(device)
    return Features(loaded)


def load_fid(name: str | None, weights: Path | None, device: torch.device) -> Fid:
    """The metric, ready to compare.

    Args:
        name: of the encoder; None for the Inception network of the published figures.
        weights: of that network, a local file; None fetches it.
        device: where the features are computed.

    Raises:
        ModelError: if the encoder or the weights cannot be loaded or fetched.
        MissingExtra: if torchmetrics is not installed, or, for the Inception network,
            torch-fidelity.
    """
    fid: Any = require("torchmetrics.image.fid", "eval")
    if name is not None:
        features = load_features(name, device)
        metric = fid.FrechetInceptionDistance(features, normalize=True)
        return Fid(metric.to(device), features.num_features, name, features.pixels)
    fidelity: Any = require("torch_fidelity.feature_extractor_inceptionv3", "fid")
    if weights is not None:
        read_weights(weights)  # refuses what is no plain file of weights
    try:
        metric = fid.FrechetInceptionDistance(
            2048, feature_extractor_weights_path=None if weights is None else str(weights)
        )
    except Exception as error:  # whatever the download or a file of another layout raises
        fix = (
            f"download {fidelity.URL_INCEPTION_V3} by other means and give it as --fid-weights "
            "FILE, or give --features MODEL"
        )
        what = "fetch" if weights is None else f"use {weights} as"
        raise ModelError(f"cannot {what} the Inception weights ({cause(error)}): {fix}") from error
    return Fid(metric.to(device), 2048, "Inception", lambda images: _bytes(images).to(device))


class Fid:
    """Frechet distance between the features of two sets of images.

    Args:
        metric: of torchmetrics.
        width: number of features, D.
        name: of the encoder.
        prepare: B images to what the metric takes.
    """

    def __init__(
        self,
        metric: Any,
        width: int,
        name: str,
        prepare: Callable[[Sequence[Image.Image]], Tensor],
    ) -> None:
        self.metric, self.width, self.name, self.prepare = metric, width, name, prepare

    def distance(
        self,
        drawn: Sequence[Path],
        reference: Sequence[Path],
        progress: Progress = lambda stage, done, total: None,
    ) -> float:
        """Distance between two sets of image files, at least two in each.

        Raises:
            InputError: for fewer, or a file that cannot be read.
        """
        if min(len(drawn), len(reference)) < 2:
            raise InputError(
                f"FID compares distributions: {len(drawn)} and {len(reference)} pictures are too "
                "few, give two of each at least"
            )
        self.metric.reset()
        total = len(drawn) + len(reference)
        done = 0
        for paths, real in ((drawn, False), (reference, True)):
            for batch in _batches(paths):
                progress("features", done, total)
                with torch.inference_mode():
                    self.metric.update(self.prepare(batch), real=real)
                done += len(batch)
        return max(0.0, float(self.metric.compute()))  # rounding may leave it below


def _batches(paths: Sequence[Path]) -> Iterator[list[Image.Image]]:
    """Images of one size, at most `BATCH`: what a folder of photographs mixes is kept apart."""
    batch: list[Image.Image] = []
    for path in paths:
        image = read_image(path)
        if batch and (image.size != batch[0].size or len(batch) == BATCH):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def _bytes(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size as uint8 (B, 3, H, W)."""
    import numpy as np

    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def _head(classifier: Classifier) -> nn.Module:
    """The layer that a classifier's outputs come from.

    Raises:
        ModelError: if there is no linear one.
    """
    number = classifier.classes
    for module in reversed(list(classifier.model.modules())):
        if isinstance(module, nn.Linear) and module.out_features == number:
            return module
    raise ModelError(f"{classifier.name} has no linear layer of {number} classes: give an embedder")
