"""How many visual tokens the language model gets, and which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from turbovlm.config.base import Setting, as_count, as_number, check_choices, check_flag
from turbovlm.errors import ConfigError


@dataclass(frozen=True, repr=False)
class VisualTokens(Setting):
    """Hand fewer visual tokens to the language model of a vision-language model.

    The tokens are chosen once, where they enter the language model; the ones that stay keep their
    positions. ``VisualTokens(keep=0.25)`` alone is the recommended setting.

    Args:
        keep: a float in (0, 1] is the share of each image's tokens that stays, an int from 1 their
            number. None, together with ``coverage``, lets each image have as many as it needs.
        coverage: with ``keep=None``, keep the fewest tokens whose mean cosine similarity to the
            tokens of the image, each with the kept one nearest to it, reaches this. In (0, 1].
        method: ``"turbo"`` covers the image: greedy facility location on the projected features.
            The others are baselines: ``"divprune"`` (largest minimal distance), ``"norm"`` (the
            longest features), ``"uniform"`` (evenly spaced in the picture), ``"random"``; and any
            that `turbovlm.selector` added.
        merge: a dropped token is averaged into the kept one that is most similar to it, where
            the two are similar (`turbovlm.maths.select.MERGE_SIMILARITY`). False only drops.
        floor: no cell of a coarse grid laid over the picture, and no frame of a video, loses all
            its tokens, where ``keep`` leaves enough of them. For ``method="turbo"``.
        seed: seed of ``method="random"``.

    Raises:
        ConfigError: for any value out of range, before anything else happens.
    """

    kind: ClassVar[str] = "visual_tokens"

    keep: float | int | None = None
    coverage: float | None = None
    method: str = "turbo"
    merge: bool = True
    floor: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        # criteria are functions on tensors: torch is not needed before a configuration is made
        from turbovlm.maths.selectors import SELECTORS

        check_choices(self, {"method": tuple(SELECTORS)})
        self._set("seed", as_count("seed", self.seed))
        for name in ("merge", "floor"):
            check_flag(name, getattr(self, name))
        if (self.keep is None) == (self.coverage is None):
            raise ConfigError(
                "give keep or coverage, one of the two: VisualTokens(keep=0.25) or "
                "VisualTokens(coverage=0.9)"
            )
        if isinstance(self.keep, int) and not isinstance(self.keep, bool):
            if self.keep < 1:
                raise ConfigError(f"keep must be at least one token an image, got {self.keep}")
        elif self.keep is not None:
            _check_share("keep", self.keep)
        if self.coverage is not None:
            _check_share("coverage", self.coverage)

    def count(self, tokens: int) -> int:
        """How many of an image's ``tokens`` stay under ``keep``; at least one.

        Raises:
            ConfigError: if ``keep`` is a number and the image has fewer tokens.
        """
        assert self.keep is not None
        if isinstance(self.keep, float):
            return max(1, round(self.keep * tokens))
        if self.keep > tokens:
            raise ConfigError(
                f"keep={self.keep} asks for more tokens than the {tokens} of this image: give a "
                f"smaller number, or a share such as keep=0.25"
            )
        return self.keep


def _check_share(name: str, value: object) -> None:
    if not 0 < as_number(name, value) <= 1:
        raise ConfigError(f"{name} is a share in (0, 1], got {value}: 1.0 keeps all tokens")
