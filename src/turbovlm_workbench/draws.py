"""Methods that draw at random: one draw says little, so that several are measured."""

from __future__ import annotations

from dataclasses import replace

from turbovlm.config import Merge
from turbovlm.maths.score import find_score

DRAWS = 5
"""How many draws the quality of a method with a seed is the mean of."""


def draws_of(merge: Merge) -> list[Merge]:
    """The setting under `DRAWS` seeds, from its own on; alone where its method has no seed.

    Each seed is two above the last, as one draw also uses its seed plus one (for the pairs).
    """
    if "seed" not in find_score(merge.method).options:
        return [merge]
    return [replace(merge, seed=merge.seed + 2 * number) for number in range(DRAWS)]
