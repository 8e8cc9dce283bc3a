"""Metrics of statements about pairs of images (NLVR2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from turbovlm.errors import InputError
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.metrics.registry import MetricValues, register_metric

ACCURACY = Measure("accuracy", "accuracy", "share of statements that were judged right")
CONSISTENCY = Measure(
    "consistency", "consistency", "share of sentences judged right for all their pairs"
)


def consistency(right: Sequence[bool], groups: Sequence[str]) -> float:
    """Share of the groups whose examples were all judged right, 0 to 1.

    Args:
        right: whether each example was judged right.
        groups: the group of each example; in NLVR2 examples with the same sentence are a group.

    Raises:
        InputError: for no example, or not one group an example.
    """
    if len(right) != len(groups) or not groups:
        raise InputError(
            f"{len(right)} results for {len(groups)} groups: give one group an example, "
            "and one example or more"
        )
    solved: defaultdict[str, bool] = defaultdict(lambda: True)
    for is_right, group in zip(right, groups, strict=True):
        solved[group] = solved[group] and is_right
    return sum(solved.values()) / len(solved)


@register_metric("nlvr2", ACCURACY, CONSISTENCY)
def score_statements(
    predictions: Sequence[bool], references: Sequence[tuple[bool, str]]
) -> MetricValues:
    """From judgements, and the label and the group of each statement."""
    right = [said == label for said, (label, _) in zip(predictions, references, strict=True)]
    whole = consistency(right, [group for _, group in references])
    return MetricValues({ACCURACY.key: [float(ok) for ok in right]}, {CONSISTENCY.key: whole})
