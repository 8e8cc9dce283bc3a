"""What to merge in an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from turbovlm.config.base import Setting, check_alpha, check_choices, check_count, check_finite
from turbovlm.errors import ConfigError

Method = Literal["turbo", "redundancy", "semantics", "random"]
Fusion = Literal["S1", "S2", "S3", "S4"]
Metric = Literal["key", "query"]
FloorRule = Literal["clamp", "paper"]

METHODS = ("turbo", "redundancy", "semantics", "random")
_CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "fusion": ("S1", "S2", "S3", "S4"),
    "metric": ("key", "query"),
    "floor_rule": ("clamp", "paper"),
}


@dataclass(frozen=True, repr=False)
class Merge(Setting):
    """Merge tokens in every block of an encoder (understanding; paper section 3.3, Eq. 13).

    Give either ``r`` or ``ratio``; ``Merge(r=16)`` alone is the recommended setting.

    Args:
        r: tokens removed in one block (the paper's drop ratio), an int for all blocks or one
            int per block. At most half of the non-prefix tokens go in one block.
        ratio: instead of ``r``, the fraction of the non-prefix tokens that each block removes,
            in [0, 0.5].
        inflection: with an int ``r``, the linear schedule: block ``b`` of ``L`` removes
            ``r * (1 + inflection * (2 b / (L - 1) - 1))`` tokens, so the total stays ``L * r``.
            0 is constant, -1 merges early (2r falling to 0), +1 merges late. In [-1, 1].
        method: whose score chooses the tokens. ``"turbo"`` is the information degree;
            ``"redundancy"`` (the paper's first baseline, ToMe), ``"semantics"`` (its second)
            and ``"random"`` (Table 8, A1) are the same code with another score.
        alpha: weight of the semantic value in S1, S3 and S4. A number means what it means in the
            paper's tables. None, the default, fits each image and
            block: the average token loses the typical distance to a best destination, a fifth of
            it without a cls token: see `turbovlm.maths.information.alpha_for`.
        fusion: S1 ``R - alpha A``, S2 ``R / A``, S3 ``R (1 - alpha A)``,
            S4 ``R - beta^|gamma - block| alpha A`` (supplementary Eq. 3 to 6; blocks from 1).
        beta: base of S4, > 0.
        gamma: the block around which S4 is centred, counted from 1.
        metric: similarity is measured on the attention ``"key"`` or ``"query"`` vectors.
        min_tokens: the floor on the sequence length, prefix tokens included.
        floor_rule: ``"clamp"`` never goes below ``min_tokens``; ``"paper"`` tests the length
            before a merge, as the released code does, so that it can end below.
        seed: seed of ``method="random"``.
        collapse: after the attention of the last block all tokens but the prefix become one, so
            that its MLP runs on the prefix and that one. Where the cls token alone is read
            afterwards (most classifiers, CLIP's embedding) this changes nothing but the time. For
            nobody else: `turbovlm.apply` refuses an encoder without a cls token and one whose
            pooling is known to read the patches, and `turbovlm_workbench.tune` measures it.

    Raises:
        ConfigError: for any value out of range, before anything else happens.
    """

    kind: ClassVar[str] = "merge"

    r: int | tuple[int, ...] | None = None
    ratio: float | None = None
    inflection: float = 0.0
    method: Method = "turbo"
    alpha: float | None = None
    fusion: Fusion = "S1"
    beta: float = 1.0
    gamma: int = 1
    metric: Metric = "key"
    min_tokens: int = 0
    floor_rule: FloorRule = "clamp"
    seed: int = 0
    collapse: bool = False

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        self._check_amount()
        check_alpha(self.alpha)
        for name in ("min_tokens", "gamma", "seed"):
            check_count(name, getattr(self, name))
        for name in ("beta", "inflection"):
            check_finite(name, getattr(self, name))
        if not isinstance(self.collapse, bool):
            raise ConfigError(f"collapse must be True or False, not {self.collapse!r}")
        if self.collapse and self.min_tokens:
            raise ConfigError(
                "collapse leaves one token beside the prefix, whatever min_tokens says: leave one "
                "of the two out"
            )
        if self.beta <= 0:
            raise ConfigError(f"beta must be positive, got {self.beta}: 1 makes S4 equal to S1")
        if abs(self.inflection) > 1:
            raise ConfigError(f"inflection must be in [-1, 1], got {self.inflection}")

    def _check_amount(self) -> None:
        if (self.r is None) == (self.ratio is None):
            raise ConfigError("give r or ratio, one of the two: Merge(r=16) or Merge(ratio=0.1)")
        if self.ratio is not None:
            check_finite("ratio", self.ratio)
            if not 0 <= self.ratio <= 0.5:
                raise ConfigError(
                    f"ratio must be in [0, 0.5], got {self.ratio}: bipartite "
                    "matching removes at most half of the tokens in one block"
                )
        for value in self.r if isinstance(self.r, tuple) else (self.r or 0,):
            check_count("r", value)
        if self.inflection and not isinstance(self.r, int):
            raise ConfigError("inflection shapes a constant r: give r as one int")
