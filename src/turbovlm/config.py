"""What to merge: frozen configurations that check themselves and round-trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from turbovlm.errors import ConfigError

Method = Literal["turbo", "redundancy", "semantics", "random"]
Fusion = Literal["S1", "S2", "S3", "S4"]
Metric = Literal["key", "query"]
FloorRule = Literal["clamp", "paper"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("turbo", "redundancy", "semantics", "random"),
    "fusion": ("S1", "S2", "S3", "S4"),
    "metric": ("key", "query"),
    "floor_rule": ("clamp", "paper"),
}


@dataclass(frozen=True, repr=False)
class Merge:
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
            paper's tables. None, the default, is the paper's 6 at the paper's 577 tokens and
            follows the length elsewhere, a tenth of that without a cls token: see
            `turbovlm.maths.information.alpha_for`.
        fusion: S1 ``R - alpha A``, S2 ``R / A``, S3 ``R (1 - alpha A)``,
            S4 ``R - beta^|gamma - block| alpha A`` (supplementary Eq. 3 to 6; blocks from 1).
        beta: base of S4, > 0.
        gamma: the block around which S4 is centred, counted from 1.
        metric: similarity is measured on the attention ``"key"`` or ``"query"`` vectors.
        min_tokens: the floor on the sequence length, prefix tokens included.
        floor_rule: ``"clamp"`` never goes below ``min_tokens``; ``"paper"`` tests the length
            before a merge, as the released code does, so that it can end below.
        seed: seed of ``method="random"``.

    Raises:
        ConfigError: for any value out of range, before anything else happens.
    """

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

    def __post_init__(self) -> None:
        if isinstance(self.r, list):  # JSON has no tuples
            object.__setattr__(self, "r", tuple(self.r))
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        self._check_amount()
        for name in ("min_tokens", "gamma", "seed"):
            _check_count(name, getattr(self, name))
        for name in ("alpha", "beta", "inflection"):
            if name != "alpha" or self.alpha is not None:
                _check_finite(name, getattr(self, name))
        if self.alpha is not None and self.alpha < 0:
            raise ConfigError(f"alpha must not be negative, got {self.alpha}: use 0 to ignore A")
        if self.beta <= 0:
            raise ConfigError(f"beta must be positive, got {self.beta}: 1 makes S4 equal to S1")
        if abs(self.inflection) > 1:
            raise ConfigError(f"inflection must be in [-1, 1], got {self.inflection}")

    def __repr__(self) -> str:
        """Only what differs from the defaults, as one would write it."""
        shown = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        )
        return f"Merge({', '.join(shown)})"

    def _check_amount(self) -> None:
        if (self.r is None) == (self.ratio is None):
            raise ConfigError("give r or ratio, one of the two: Merge(r=16) or Merge(ratio=0.1)")
        if self.ratio is not None:
            _check_finite("ratio", self.ratio)
            if not 0 <= self.ratio <= 0.5:
                raise ConfigError(
                    f"ratio must be in [0, 0.5], got {self.ratio}: bipartite "
                    "matching removes at most half of the tokens in one block"
                )
        for value in self.r if isinstance(self.r, tuple) else (self.r or 0,):
            _check_count("r", value)
        if self.inflection and not isinstance(self.r, int):
            raise ConfigError("inflection shapes a constant r: give r as one int")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, only what differs from the defaults, plus the kind."""
        fields = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }
        if isinstance(self.r, tuple):
            fields["r"] = list(self.r)
        return {"kind": "merge", **fields}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: for an unknown key or kind, or a value out of range.
        """
        fields = dict(data)
        kind = fields.pop("kind", "merge")
        if kind != "merge":
            raise ConfigError(f"kind {kind!r} is not known to this version: expected 'merge'")
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ConfigError(
                f"unknown settings {', '.join(unknown)}: known are {', '.join(sorted(known))}"
            )
        return cls(**fields)

    def save(self, path: str | Path) -> None:
        """Write as a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ConfigError: if the file is missing, is not JSON, or holds a bad setting.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read a configuration from {path}: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} must hold one JSON object, not {type(data).__name__}")
        return cls.from_dict(data)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be an integer, not {value!r}")
    if value < 0:
        raise ConfigError(f"{name} must not be negative, got {value}: use 0 to switch it off")


def _check_finite(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, got {value}")
