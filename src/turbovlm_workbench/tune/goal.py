"""What to look for: the promise, on which images it is checked, and what may be tried."""

from __future__ import annotations

from dataclasses import dataclass

from turbovlm.config import VisualTokens
from turbovlm.errors import ConfigError


@dataclass(frozen=True)
class Goal:
    """The fastest setting that keeps a promise.

    Args:
        max_loss: the promise, a share in (0, 1): the most that the task's loss may be.
        seed: of the split into images to search with and to validate on.
        keeps: what a language model may be handed of an image, tried alone and with merging.

    Raises:
        ConfigError: for a promise out of range.
    """

    max_loss: float = 0.01
    seed: int = 0
    keeps: tuple[VisualTokens, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.max_loss < 1:
            raise ConfigError(
                f"max_loss is a share above 0 and below 1, got {self.max_loss}: try 0.01"
            )
