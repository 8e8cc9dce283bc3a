"""Metrics of classification on labelled images."""

from __future__ import annotations

from collections.abc import Sequence

from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.metrics.registry import MetricValues, register_metric

GUESSES = 5
TOP1 = Measure("top1", "top-1", "share of images whose most likely class is the label")
TOP5 = Measure("top5", "top-5", "share of images whose label is among the five most likely classes")


@register_metric("classification", TOP1, TOP5)
def top_accuracy(predictions: Sequence[Sequence[int]], references: Sequence[int]) -> MetricValues:
    """From the most likely classes of each image, the best first, and its label."""
    pairs = list(zip(predictions, references, strict=True))
    return MetricValues(
        {
            TOP1.key: [float(classes[0] == label) for classes, label in pairs],
            TOP5.key: [float(label in classes[:GUESSES]) for classes, label in pairs],
        }
    )
