"""What to merge in an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from turbovlm.config.base import (
    Setting,
    as_alpha,
    as_count,
    as_number,
    check_flag,
    check_method,
)
from turbovlm.config.paper import Paper
from turbovlm.errors import ConfigError

if TYPE_CHECKING:
    from turbovlm.maths.match import Rule
    from turbovlm.maths.schedule import Schedule

AMOUNTS = ("r", "ratio", "speedup")
_PAPER = "turbovlm.Merge.paper(r, ...), which reproduces the paper"


@dataclass(frozen=True, repr=False)
class Merge(Setting):
    """Merge tokens in the blocks of an encoder (understanding; paper section 3.3, Eq. 13).

    Give one of ``r``, ``ratio`` and ``speedup``.

    Args:
        r: tokens removed in one block (the paper's drop ratio), an int for all blocks or one
            int per block. At most half of the non-prefix tokens go in one block.
        ratio: instead of ``r``, the fraction of the non-prefix tokens that each block removes,
            in [0, 0.5].
        speedup: instead of ``r``, by what factor the blocks shall need fewer operations, from 1.
            Which blocks merge and how many tokens follows from the model and the length of its
            input, see `turbovlm.maths.speedup`.
        inflection: with an int ``r``, the linear schedule: block ``b`` of ``L`` removes
            ``r * (1 + inflection * (2 b / (L - 1) - 1))`` tokens, so the total stays ``L * r``.
            0 is constant, -1 merges early (2r falling to 0), +1 merges late. In [-1, 1].
        method: whose score chooses the tokens. ``"turbo"`` is the information degree
            ``R - alpha A``; ``"redundancy"`` (the paper's first baseline, ToMe), ``"semantics"``
            (its second) and ``"random"`` (Table 8, A1) are the same code with another score;
            `turbovlm.score` adds yours.
        alpha: weight of the semantic value A. A number means what it means in the paper's
            tables. None, the default, fits each image and block: the average token loses the
            typical distance to a best destination, a fifth of it without a cls token, see
            `turbovlm.maths.score.fitted_weight`.
        min_tokens: the floor on the sequence length, prefix tokens included: it never goes below.
        seed: seed of ``method="random"``.
        collapse: after the attention of the last block all tokens but the prefix become one, so
            that its MLP runs on the prefix and that one. Where the cls token alone is read
            afterwards (most classifiers, CLIP's embedding) this changes nothing but the time;
            `turbovlm.apply` refuses it everywhere else.
        preset: what only reproduces the paper; made by `Merge.paper`.

    Raises:
        ConfigError: for any value out of range, before anything else happens.
    """

    kind: ClassVar[str] = "merge"
    renamed: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("fusion", "beta", "gamma", "metric", "floor_rule"), _PAPER
    )

    r: int | tuple[int, ...] | None = None
    ratio: float | None = None
    speedup: float | None = None
    inflection: float = 0.0
    method: str = "turbo"
    alpha: float | None = None
    min_tokens: int = 0
    seed: int = 0
    collapse: bool = False
    preset: Paper | None = None

    @classmethod
    def paper(
        cls, r: int | tuple[int, ...], *, alpha: float | None = None, method: str = "turbo",
        min_tokens: int = 0, seed: int = 0, **preset: object,
    ) -> Self:  # fmt: skip
        """The released code's behaviour, several merges deep.

        Args:
            r: as in `Merge`.
            alpha: weight of A, 6 unless given, as in the paper's tables; the released code's
                factor of 30 on A is included.
            method: as in `Merge`.
            min_tokens: the paper's threshold, tested before a merge, so that it can end below.
            seed: as in `Merge`.
            **preset: ``fusion``, ``beta``, ``gamma`` and ``metric`` of `Paper`.

        Raises:
            ConfigError: for an option that the method or the fusion strategy ignores.
        """
        chosen = Paper.from_dict(preset)
        weighs = method == "turbo" and chosen.fusion != "S2"
        if alpha is None and weighs:
            alpha = 6.0
        return cls(r=r, method=method, alpha=alpha, min_tokens=min_tokens, seed=seed, preset=chosen)

    def __repr__(self) -> str:
        """As one would write it: `Merge.paper` for the paper's preset."""
        if self.preset is None:
            return super().__repr__()
        given = {**self._given(), **self.preset._given()}
        del given["preset"]
        return f"Merge.paper({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def __post_init__(self) -> None:
        self._check_amount()
        self._set("alpha", as_alpha(self.alpha))
        for name in ("min_tokens", "seed"):
            self._set(name, as_count(name, getattr(self, name)))
        given = {"alpha": self.alpha} if self.alpha is not None else {}
        check_method(self.method, given | ({"seed": self.seed} if self.seed else {}))
        self._check_preset()
        check_flag("collapse", self.collapse)
        if self.collapse and self.min_tokens:
            raise ConfigError(
                "collapse leaves one token beside the prefix, whatever min_tokens says: leave one "
                "of the two out"
            )
        self._set("inflection", as_number("inflection", self.inflection))
        if abs(self.inflection) > 1:
            raise ConfigError(f"inflection must be in [-1, 1], got {self.inflection}")
        if self.inflection and not isinstance(self.r, int):
            raise ConfigError("inflection shapes a constant r: give r as one int")

    def _check_amount(self) -> None:
        if sum(getattr(self, name) is not None for name in AMOUNTS) != 1:
            raise ConfigError(
                "give one of r, ratio and speedup: Merge(r=16), Merge(ratio=0.1) or "
                "Merge(speedup=1.4)"
            )
        if self.ratio is not None:
            self._set("ratio", as_number("ratio", self.ratio))
            if not 0 <= self.ratio <= 0.5:
                raise ConfigError(
                    f"ratio must be in [0, 0.5], got {self.ratio}: bipartite "
                    "matching removes at most half of the tokens in one block"
                )
        if self.speedup is not None:
            self._set("speedup", as_number("speedup", self.speedup))
            if self.speedup < 1:
                raise ConfigError(f"speedup must be at least 1, got {self.speedup}: 1.4 is typical")
        if isinstance(self.r, list | tuple):
            self._set("r", tuple(as_count("r", value) for value in self.r))
        elif self.r is not None:
            self._set("r", as_count("r", self.r))

    def _check_preset(self) -> None:
        if self.preset is None:
            return
        if isinstance(self.preset, dict):
            self._set("preset", Paper.from_dict(self.preset))
        if not isinstance(self.preset, Paper):
            raise ConfigError(f"preset must come from {_PAPER}, not {self.preset!r}")
        fusion = self.preset.fusion
        if self.speedup is not None or self.ratio is not None or self.collapse:
            raise ConfigError(
                "the paper's preset takes r alone: leave ratio, speedup, collapse out"
            )
        if self.method != "turbo" and fusion != "S1":
            raise ConfigError(f"method={self.method!r} has no fusion: leave {fusion} out")
        if self.method == "turbo" and (self.alpha is None) != (fusion == "S2"):
            raise ConfigError("S1, S3 and S4 need a number for alpha, and S2 has none")

    @property
    def rule(self) -> Rule:
        """How tokens are chosen."""
        from turbovlm.maths.match import Rule
        from turbovlm.maths.paper import fusion_score
        from turbovlm.maths.score import find_score

        paper = self.preset
        score = find_score(self.method)
        if paper is not None and self.method == "turbo":
            score = fusion_score(paper.fusion, paper.beta, paper.gamma)
        return Rule(score, self.alpha, self.seed, released_order=paper is not None)

    @property
    def schedule(self) -> Schedule:
        """How many tokens go in which block; with ``speedup`` it depends on the model."""
        from turbovlm.maths.schedule import Schedule

        return Schedule(
            self.r, self.ratio, self.inflection, self.min_tokens, self.preset is not None,
            self.collapse,
        )  # fmt: skip
