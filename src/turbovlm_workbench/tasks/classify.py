"""Image classification: accuracy, and how often and how far the merged model disagrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm_workbench.tasks.base import Measure, Task

ACCURACY = Measure("accuracy", "accuracy", "share of images whose top-1 class is the label")
AGREEMENT = Measure(
    "agreement", "agreement", "share of images with the same top-1 class as the unmerged model"
)
KL = Measure(
    "kl", "KL", "mean KL(unmerged || merged) of the class probabilities, in nats", False, "lower"
)
LOST = Measure(
    "loss", "accuracy lost", "accuracy of the unmerged model minus this one's", better="lower"
)
GIVEN_UP = Measure(
    "loss",
    "confidence lost",
    "mean share of the unmerged model's confidence in its class that the merged class gives up",
    better="lower",
)


@dataclass
class Classify(Task[Tensor]):
    """A classifier; ``labels`` (one per image, in order) where the truth is known."""

    labels: tuple[int, ...] | None = None

    kind = "classification"
    agreement = AGREEMENT
    drift = KL
    tolerance = "95 % agreement, or, with labels, one point of accuracy and 90 % agreement"

    @property
    def loss(self) -> Measure:
        """Accuracy lost where there are labels, else confidence given up.

        Without labels a changed class costs 1 - p(merged top-1) / p(unmerged top-1) with the
        unmerged model's softmax p: little where it could hardly decide between the two. The
        difference of the two p would be the expected loss of a calibrated model; on photographs
        that the model is too modest about it is several times too small (docs/tune.md).
        """
        return GIVEN_UP if self.labels is None else LOST

    def measures(self) -> tuple[Measure, ...]:
        """Accuracy only where there are labels."""
        return (AGREEMENT, KL) if self.labels is None else (ACCURACY, AGREEMENT, KL)

    def call(self, model: nn.Module, pixels: Tensor) -> Any:
        """One forward."""
        return model(pixels)

    def read(self, raw: Any) -> Tensor:
        """Logits (B, C) in float32."""
        return getattr(raw, "logits", raw).float().cpu()

    def scores(self, reference: Tensor, output: Tensor, start: int) -> list[dict[str, float]]:
        """From logits (B, C) of both models."""
        p, q = (logits.double().log_softmax(-1) for logits in (reference, output))
        # Both from the raw logits, where rounding cannot make two classes equal.
        before, after = reference.argmax(-1), output.argmax(-1)
        scores = {"agreement": before == after, "kl": (p.exp() * (p - q)).sum(-1)}
        if self.labels is None:
            now, was = (p.gather(-1, top[:, None])[:, 0] for top in (after, before))
            scores["loss"] = 1 - (now - was).exp()
        else:
            labels = torch.tensor(self.labels[start : start + len(output)])
            right = (after == labels).double()
            scores |= {"accuracy": right, "loss": (before == labels).double() - right}
        columns = [values.double().tolist() for values in scores.values()]
        return [dict(zip(scores, row, strict=True)) for row in zip(*columns, strict=True)]

    def select(self, indices: Sequence[int]) -> Classify:
        """The labels of those images."""
        labels = self.labels
        return self if labels is None else replace(self, labels=tuple(labels[i] for i in indices))

    def words(self, output: Tensor) -> list[str]:
        """The top-1 class."""
        return [f"class {index}" for index in output.argmax(-1).tolist()]

    def acceptable(self, quality: Mapping[str, float], unmerged: Mapping[str, float]) -> bool:
        """See ``tolerance``."""
        if "accuracy" not in quality:
            return quality["agreement"] >= 0.95
        loss = unmerged["accuracy"] - quality["accuracy"]
        # Ten correct images of a thousand may be lost; not a hair more through rounding.
        return loss <= 0.01 + 1e-9 and quality["agreement"] >= 0.90
