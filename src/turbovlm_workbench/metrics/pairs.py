"""Metrics of statements about pairs of images (NLVR2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from turbovlm.errors import InputError


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
