"""What only reproduces the paper and its peers: presets of `Merge` and `MergeRestore`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from turbovlm.config.base import Setting, as_count, as_number, check_choices
from turbovlm.errors import ConfigError

_CHOICES: dict[str, tuple[str, ...]] = {
    "fusion": ("S1", "S2", "S3", "S4"),
    "metric": ("key", "query"),
}
_RESTORE_CHOICES: dict[str, tuple[str, ...]] = {
    "destinations": ("grid", "bipartite"),
    "metric": ("sketch", "token", "key"),
    "restore": ("linear", "copy", "weighted"),
}


@dataclass(frozen=True, repr=False)
class Paper(Setting):
    """The released code's behaviour where it differs from ours, made by `Merge.paper`.

    After a merge the even survivors come first, then the odd ones, so that later blocks pair
    other tokens; the floor is tested before a merge, so that it can end below.

    Args:
        fusion: S1 ``R - alpha A``, S2 ``R / A``, S3 ``R (1 - alpha A)``,
            S4 ``R - beta^|gamma - block| alpha A`` (supplementary Eq. 3 to 6; blocks from 1).
        beta: base of S4, > 0.
        gamma: the block around which S4 is centred, counted from 1.
        metric: similarity is measured on the attention ``"key"`` or ``"query"`` vectors.

    Raises:
        ConfigError: for a value out of range, or beta and gamma without S4.
    """

    kind: ClassVar[str] = "paper"

    fusion: Literal["S1", "S2", "S3", "S4"] = "S1"
    beta: float = 1.0
    gamma: int = 1
    metric: Literal["key", "query"] = "key"

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        self._set("beta", as_number("beta", self.beta))
        self._set("gamma", as_count("gamma", self.gamma))
        if self.beta <= 0:
            raise ConfigError(f"beta must be positive, got {self.beta}: 1 makes S4 equal to S1")
        if self.fusion != "S4" and (self.beta, self.gamma) != (1.0, 1):
            raise ConfigError(f"beta and gamma belong to S4, not to {self.fusion}: leave them out")


@dataclass(frozen=True, repr=False)
class RestorePreset(Setting):
    """What a denoiser's merging is made of, where it is to differ from `MergeRestore`'s way.

    To compare with the paper (`MergeRestore.paper`) and other methods, one part at a time; the
    defaults are those of `MergeRestore`.

    Args:
        destinations: ``"grid"`` has one in every cell; ``"bipartite"`` is the paper's plain
            split into even and odd positions.
        metric: similarity is that of the tokens that enter the block: of a ``"sketch"`` of them on
            64 fixed random directions, or of the whole ``"token"``; or that of the ``"key"``
            vectors of the self-attention, averaged over heads.
        restore: a merged token gets back the ``"copy"`` of its destination, or the
            ``"weighted"`` mean of the two most similar destinations (Eq. 14); ``"linear"`` adds
            to the copy, after feed-forward, what a linear map fitted to the survivors makes of the
            difference: see `turbovlm.maths.fold.Slope`.

    Raises:
        ConfigError: for any other word.
    """

    kind: ClassVar[str] = "restore_preset"

    destinations: Literal["grid", "bipartite"] = "grid"
    metric: Literal["sketch", "token", "key"] = "sketch"
    restore: Literal["linear", "copy", "weighted"] = "linear"

    def __post_init__(self) -> None:
        check_choices(self, _RESTORE_CHOICES)
