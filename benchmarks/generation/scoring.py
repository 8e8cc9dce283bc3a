"""What is measured of drawn pictures: what the lab's captioner reads in them, and distances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from turbovlm_lab import captioner
from turbovlm_lab.grammar import Describable, attribute_accuracy
from turbovlm_lab.scenes import SIDE

Values = NDArray[np.float64]
Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Sheet:
    """The pictures of one configuration, one a prompt, and what was read in them.

    Attributes:
        pictures: ``(n, height, width, 3)``.
        right: ``(n,)`` share of the attributes of the prompt that the captioner reads.
        exact: ``(n,)`` 1 where it reads the prompt and nothing else, otherwise 0.
        features: ``(n, d)`` mean of the captioner's patch features.
    """

    pictures: Pictures
    right: Values
    exact: Values
    features: Values

    def save(self, path: Path) -> None:
        """Write all of it, at once or not at all."""
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **vars(self))
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Sheet:
        """Read what `save` wrote."""
        with np.load(path) as held:
            return cls(**{name: held[name] for name in held.files})

    def squared(self, other: Sheet) -> Values:
        """``(n,)`` mean squared difference to the same prompts' pictures, in levels of 255."""
        gap = self.pictures.astype(np.float64) - other.pictures.astype(np.float64)
        return np.square(gap).mean((1, 2, 3))


class Reader:
    """The lab's captioner, as judge of what was drawn and as feature extractor."""

    def __init__(self) -> None:
        self.model, self.processor = captioner.load_captioner()

    def sheet(self, pictures: Pictures, objects: Sequence[Sequence[Describable]]) -> Sheet:
        """Read ``pictures`` drawn for prompts that name ``objects``."""
        large = [
            np.array(Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            for p in pictures
        ]
        said = captioner.write_captions(self.model, self.processor, large)
        each = [attribute_accuracy([s], [o]) for s, o in zip(said, objects, strict=True)]
        return Sheet(
            pictures,
            np.array([one.recall for one in each]),
            np.array([one.exact for one in each]),
            np.concatenate(list(self._features(large))),
        )

    @torch.inference_mode()
    def _features(self, images: Sequence[Pictures], batch: int = 32) -> Iterator[Values]:
        call: Any = self.processor
        for start in range(0, len(images), batch):
            pixels = call(images=list(images[start : start + batch]), return_tensors="pt")
            hidden = self.model.vision_model(pixels["pixel_values"]).last_hidden_state
            yield hidden[:, 1:].mean(1).double().numpy()


class Distance:
    """Fréchet distance of features to fixed ones, each as a Gaussian: FID, in other features."""

    def __init__(self, reference: Values) -> None:
        self.mean, covariance = _moments(reference)
        self.trace = np.trace(covariance)
        values, vectors = np.linalg.eigh(covariance)
        self.root = (vectors * np.sqrt(values.clip(0))) @ vectors.T

    def to(self, features: Values) -> float:
        """``|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))`` for features ``(n, d)``."""
        mean, covariance = _moments(features)
        # C C' and root C' root have the same eigenvalues, and the second is symmetric
        shared = np.linalg.eigvalsh(self.root @ covariance @ self.root)
        spread = self.trace + np.trace(covariance) - 2 * np.sqrt(shared.clip(0)).sum()
        return float(np.square(mean - self.mean).sum() + spread)

    def resampled(self, features: Values, samples: int, seed: int = 0) -> Values:
        """`to` of bootstrap samples; the same seed draws the same rows of any features."""
        generator = np.random.default_rng(seed)
        rows = (generator.integers(len(features), size=len(features)) for _ in range(samples))
        return np.array([self.to(features[row]) for row in rows])


def _moments(features: Values) -> tuple[Values, Values]:
    return features.mean(0), np.cov(features, rowvar=False)
