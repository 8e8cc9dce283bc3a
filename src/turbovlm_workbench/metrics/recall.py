"""Recall of retrieval, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.metrics.registry import MetricValues, register_metric

RANKS = (1, 5, 10)
WAYS = {"image": ("i2t", "image to text"), "caption": ("t2i", "text to image")}
RECALL = tuple(
    Measure(f"{short}_r{k}", f"{way} R@{k}", f"share of queries with a right one in the first {k}")
    for short, way in WAYS.values()
    for k in RANKS
)


@register_metric("retrieval", *RECALL)
def recall_at_ranks(
    predictions: Sequence[Sequence[str]],
    references: Sequence[tuple[Literal["image", "caption"], str]],
) -> MetricValues:
    """Recall at 1, 5 and 10.

    Args:
        predictions: for every query the images of the candidates, the best first; a caption stands
            for its image.
        references: for every query what it is, and its image.
    """
    pairs = list(zip(predictions, references, strict=True))
    return MetricValues(
        {
            f"{short}_r{k}": [
                float(own in found[:k]) if side == query else None for found, (query, own) in pairs
            ]
            for side, (short, _) in WAYS.items()
            for k in RANKS
        }
    )
