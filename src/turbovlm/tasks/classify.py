"""Image classification: accuracy, and how often and how far the merged model disagrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.tasks.base import Measure, Meter, Task

ACCURACY = Measure("accuracy", "accuracy", "share of images whose top-1 class is the label")
AGREEMENT = Measure(
    "agreement", "agreement", "share of images with the same top-1 class as the unmerged model"
)
KL = Measure(
    "kl", "KL", "mean KL(unmerged || merged) of the class probabilities, in nats", False, "lower"
)


class ClassifyMeter(Meter[Tensor]):
    """Accuracy, top-1 agreement and KL over logits (B, C)."""

    def __init__(self, labels: tuple[int, ...] | None) -> None:
        self.labels = None if labels is None else torch.tensor(labels)
        self.images = self.right = self.same = 0
        self.kl = 0.0

    def update(self, reference: Tensor, output: Tensor, start: int) -> None:
        """Add logits (B, C) of the unmerged model and of this one."""
        top = output.argmax(-1)
        self.images += len(output)
        self.same += int((top == reference.argmax(-1)).sum())
        if self.labels is not None:
            self.right += int((top == self.labels[start : start + len(output)]).sum())
        p, q = (logits.double().log_softmax(-1) for logits in (reference, output))
        self.kl += float((p.exp() * (p - q)).sum())

    def result(self) -> dict[str, float]:
        """``accuracy`` (with labels), ``agreement`` and ``kl``."""
        shares = {"agreement": self.same / self.images, "kl": self.kl / self.images}
        return shares if self.labels is None else {"accuracy": self.right / self.images, **shares}


@dataclass
class Classify(Task[Tensor]):
    """A classifier; ``labels`` (one per image, in order) where the truth is known."""

    labels: tuple[int, ...] | None = None

    kind = "classification"
    agreement = AGREEMENT
    tolerance = "95 % agreement, or, with labels, one point of accuracy and 90 % agreement"

    def measures(self) -> tuple[Measure, ...]:
        """Accuracy only where there are labels."""
        return (AGREEMENT, KL) if self.labels is None else (ACCURACY, AGREEMENT, KL)

    def call(self, model: nn.Module, pixels: Tensor) -> Any:
        """One forward."""
        return model(pixels)

    def read(self, raw: Any) -> Tensor:
        """Logits (B, C) in float32."""
        return getattr(raw, "logits", raw).float().cpu()

    def meter(self) -> ClassifyMeter:
        """A fresh meter over the images of this task."""
        return ClassifyMeter(self.labels)

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
