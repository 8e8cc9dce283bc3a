"""Image classification: accuracy, and how often and how far a merged model disagrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from turbovlm.errors import ModelError
from turbovlm_workbench.data import Labelled, read_classification
from turbovlm_workbench.data.images import check_labels
from turbovlm_workbench.data.predictions import Record
from turbovlm_workbench.load.loaded import Classifier
from turbovlm_workbench.load.models import load_model
from turbovlm_workbench.metrics.classes import GUESSES
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.tasks.image import ImageTask
from turbovlm_workbench.tasks.registry import register_task
from turbovlm_workbench.tasks.request import Request
from turbovlm_workbench.tasks.scored import ScoredTask, Stages

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


@register_task
@dataclass(frozen=True)
class Classification(ImageTask[Tensor], ScoredTask):
    """A classifier.

    Metrics get the numbers of the five most likely classes of an image, the best first, and its
    label.

    Args:
        examples: images with their classes, in the model's numbers.
        labels: one per image of a comparison, in order, where the truth is known.

    Raises:
        ModelError: if the model is no classifier.
    """

    examples: Sequence[Labelled] = ()
    labels: tuple[int, ...] | None = None

    kind = "classification"
    reads = Classifier
    options = frozenset({"weights"})
    agreement = AGREEMENT
    drift = KL
    tolerance = "95 % agreement, or, with labels, one point of accuracy and 90 % agreement"

    @classmethod
    def from_request(cls, request: Request) -> Self:
        """See `ScoredTask.from_request`."""
        examples = request.first(read_classification(request.data, request.images))
        task = cls(load_model(request.model, request.weights), examples)
        check_labels([e.label for e in examples], task.classifier.classes)
        return task

    def __post_init__(self) -> None:
        _ = self.classifier

    @property
    def classifier(self) -> Classifier:
        """The loaded model.

        Raises:
            ModelError: if it is no classifier.
        """
        if isinstance(self.loaded, Classifier):
            return self.loaded
        raise ModelError(
            f"{self.name} is no classifier: give a classifier, e.g. timm:vit_base_patch16_224"
        )

    @property
    def loss(self) -> Measure:
        """Accuracy lost where there are labels, else confidence given up.

        Without labels a changed class costs 1 - p(merged top-1) / p(unmerged top-1) with the
        unmerged model's softmax p: little where it could hardly decide between the two. The
        difference of the two p would be the expected loss of a calibrated model; on photographs
        that the model is too modest about it is several times too small (docs/tune.md).
        """
        return GIVEN_UP if self.labels is None else LOST

    @property
    def comparisons(self) -> tuple[Measure, ...]:
        """Accuracy only where there are labels."""
        return (AGREEMENT, KL) if self.labels is None else (ACCURACY, AGREEMENT, KL)

    def call(self, model: nn.Module, pixels: Tensor) -> Any:
        """One forward."""
        return model(pixels)

    def read(self, raw: Any) -> Tensor:
        """Logits (B, C) in float32."""
        return getattr(raw, "logits", raw).float().cpu()

    def compare(self, reference: Tensor, output: Tensor, start: int) -> list[dict[str, float]]:
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

    def with_labels(self, labels: Sequence[int] | None) -> Self:
        """See `ImageTask.with_labels`."""
        if labels is None:
            return self
        check_labels(labels, self.classifier.classes)
        return replace(self, labels=tuple(labels))

    def select(self, indices: Sequence[int]) -> Self:
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

    def fingerprint(self) -> list[Any]:
        """Names and labels."""
        return [[e.id, e.label] for e in self.examples]

    def stages(self) -> Stages:
        """One forward for each image."""
        records = yield self.stage(
            lambda index: self.image(self.examples[index].image),
            self._predict,
            lambda index: [self.examples[index].image],
        )
        label = {e.id: e.label for e in self.examples}
        return self.score({key: (r["classes"], label[key]) for key, r in records.items()})

    def _predict(self, images: list[Tensor]) -> list[Record]:
        chances = self.outputs(self.model, self.loaded.batch(images)).softmax(-1)
        best = chances.topk(min(GUESSES, chances.shape[-1]), dim=-1)
        return [
            {"classes": top.tolist(), "probabilities": [round(p, 5) for p in chance.tolist()]}
            for top, chance in zip(best.indices, best.values, strict=True)
        ]
