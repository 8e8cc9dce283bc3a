"""What to merge, and restore, in a diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from turbovlm.config.base import (
    Setting,
    as_alpha,
    as_count,
    as_number,
    check_choices,
    check_flag,
    check_method,
)
from turbovlm.config.paper import RestorePreset
from turbovlm.errors import ConfigError

if TYPE_CHECKING:
    from turbovlm.maths.match import Rule

OURS = RestorePreset()
PAPER = RestorePreset("bipartite", "key", "weighted")
MODULES = ("self_attention", "cross_attention", "feed_forward")
_PRESET = "MergeRestore.paper(ratio=...), or preset=RestorePreset(...)"


@dataclass(frozen=True, repr=False)
class MergeRestore(Setting):
    """Merge before and restore after the modules of a denoiser (paper section 3.3, Eq. 14).

    ``MergeRestore(ratio=0.3)`` alone is the recommended setting.

    Args:
        ratio: the fraction of the visual tokens that each module is spared, from 0 up to what
            the destinations leave: 1 - 1 / (cell height x cell width), or 0.5 in the paper's
            bipartite split. A tuple divides the denoising into equal parts, from noise to image,
            with a ratio each: ``(0.5, 0.3, 0.0)`` leaves the last third alone.
        self_attention: the ratio of this kind of module instead; 0 switches it off. In joint
            attention (SD3, Flux) the visual tokens are merged, the text tokens never.
        cross_attention: likewise.
        feed_forward: likewise.
        min_tokens: modules with fewer visual tokens are left alone; it chooses the levels of a
            UNet. 0 takes all of them.
        method: whose score chooses the tokens. ``"turbo"`` is the information degree
            ``R - alpha A``; ``"redundancy"`` is R, ``"semantics"`` is -A, and ``"random"``
            draws tokens and destinations; `turbovlm.score`
            adds yours.
        alpha: weight of the semantic value. None, the default, fits each sample and
            block: see `turbovlm.maths.score.fitted_weight`.
        cell: height and width of a cell of the grid, in tokens.
        seed: which token of a cell is the destination is drawn anew in each block and step from
            this seed, the same in every run; None takes the first token of every cell, always.
        plan: ``"block"`` matches once and uses it in all modules of a block; under guidance the
            semantic value is then what the prompt has changed in each token. ``"module"`` is the
            paper's way: the mean query of the image guides, and cross-attention has a plan of
            its own, guided by the mean key of the prompt.
        proportional: a merged token counts in self-attention as often as it has members
            (supplementary Eq. 2); False is the way of tomesd.
        guidance: whether the second half of every batch is the first half again with the prompt,
            as classifier-free guidance has it; the halves then share a plan. None, the default,
            asks the pipeline that runs, and takes a denoiser that runs alone for unguided.
        preset: another way of merging and restoring, to compare with.

    Raises:
        ConfigError: for any value out of range, before anything else happens.
    """

    kind: ClassVar[str] = "merge_restore"
    renamed: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("destinations", "metric", "restore"), _PRESET
    )

    ratio: float | tuple[float, ...]
    self_attention: float | None = None
    cross_attention: float | None = None
    feed_forward: float | None = None
    min_tokens: int = 0
    method: str = "turbo"
    alpha: float | None = None
    cell: tuple[int, int] = (2, 2)
    seed: int | None = 0
    plan: Literal["block", "module"] = "block"
    proportional: bool = True
    guidance: bool | None = None
    preset: RestorePreset = OURS

    @classmethod
    def paper(cls, ratio: float | tuple[float, ...], **fields: object) -> Self:
        """The paper's way: a plan for each module, even and odd positions, keys, Eq. 14.

        Args:
            ratio: as in `MergeRestore`.
            **fields: further ones of `MergeRestore`.

        Raises:
            ConfigError: for a value out of range.
        """
        return cls.from_dict({"ratio": ratio, "plan": "module", **fields, "preset": PAPER})

    def __repr__(self) -> str:
        """As one would write it: `MergeRestore.paper` for the paper's way."""
        if self.preset != PAPER or self.plan != "module":
            return super().__repr__()
        given = {n: v for n, v in self._given().items() if n not in ("preset", "plan")}
        return f"MergeRestore.paper({', '.join(f'{n}={v!r}' for n, v in given.items())})"

    def __post_init__(self) -> None:
        if isinstance(self.preset, dict):
            self._set("preset", RestorePreset.from_dict(self.preset))
        if not isinstance(self.preset, RestorePreset):
            raise ConfigError(f"preset must come from {_PRESET}, not {self.preset!r}")
        check_choices(self, {"plan": ("block", "module")})
        self._set("alpha", as_alpha(self.alpha))
        check_method(self.method, {} if self.alpha is None else {"alpha": self.alpha})
        self._set("min_tokens", as_count("min_tokens", self.min_tokens))
        check_flag("proportional", self.proportional)
        if self.guidance is not None:
            check_flag("guidance", self.guidance)
        if self.seed is not None:
            self._set("seed", as_count("seed", self.seed))
            if self.seed >= 2**63:
                raise ConfigError(f"seed must be below 2^63, got {self.seed}")
        self._check_cell()
        if isinstance(self.ratio, list | tuple):
            if not self.ratio:
                raise ConfigError("ratio needs at least one value: MergeRestore(ratio=0.3)")
            self._set("ratio", tuple(self._as_ratio("ratio", part) for part in self.ratio))
        else:
            self._set("ratio", self._as_ratio("ratio", self.ratio))
        for name in MODULES:
            if getattr(self, name) is not None:
                self._set(name, self._as_ratio(name, getattr(self, name)))

    @property
    def rule(self) -> Rule:
        """How tokens are chosen."""
        from turbovlm.maths.match import Rule
        from turbovlm.maths.score import find_score

        return Rule(find_score(self.method), self.alpha, self.seed or 0)

    @property
    def most(self) -> float:
        """The largest ratio that the destinations leave."""
        if self.preset.destinations == "bipartite":
            return 0.5
        return 1 - 1 / (self.cell[0] * self.cell[1])

    def _check_cell(self) -> None:
        cell = tuple(self.cell) if isinstance(self.cell, list) else self.cell
        if not isinstance(cell, tuple) or len(cell) != 2:
            raise ConfigError(f"cell must be (height, width) in tokens, not {self.cell!r}")
        self._set("cell", tuple(as_count("cell", side) for side in cell))
        if self.preset.destinations == "bipartite" and self.cell != (2, 2):
            raise ConfigError("even and odd positions have no cells: leave cell out")
        if self.cell[0] * self.cell[1] < 2:
            raise ConfigError(f"cell must hold at least two tokens, not {self.cell}: use (2, 2)")

    def _as_ratio(self, name: str, value: object) -> float:
        ratio = as_number(name, value)
        if not 0 <= ratio <= self.most:
            fix = (
                "a larger cell leaves more, e.g. cell=(4, 4)"
                if self.preset.destinations == "grid"
                else "the default preset leaves more"
            )
            raise ConfigError(
                f"{name} must be in [0, {self.most:.4g}], got {value}: every token that is merged "
                f"needs a destination; {fix}"
            )
        return ratio
