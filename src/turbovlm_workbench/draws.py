"""Methods that draw at random: one draw says little, so that several are measured."""

from __future__ import annotations

from dataclasses import replace

from turbovlm.config import Merge, Setting, VisualTokens
from turbovlm.maths.score import find_score
from turbovlm_workbench.settings import Settings

DRAWS = 5
"""How many draws the quality of a method with a seed is the mean of."""


def draws_of(settings: Settings) -> list[Settings]:
    """The settings under `DRAWS` seeds, from their own on; alone where no method has a seed.

    Each seed is two above the last, as one draw also uses its seed plus one (for the pairs).
    """
    if not any(map(_draws, settings)):
        return [settings]
    return [tuple(_reseeded(setting, number) for setting in settings) for number in range(DRAWS)]


def _draws(setting: Setting) -> bool:
    if isinstance(setting, Merge):
        return "seed" in find_score(setting.method).options
    return isinstance(setting, VisualTokens) and setting.method == "random"


def _reseeded(setting: Setting, number: int) -> Setting:
    if isinstance(setting, Merge | VisualTokens) and _draws(setting):
        return replace(setting, seed=setting.seed + 2 * number)
    return setting
