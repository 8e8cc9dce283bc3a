"""Information degree: how well a token can be spared (paper section 3, Eq. 6, 8 and 12).

Symbols: R mutual redundancy, A semantic value, E information degree, all ``(B, S)`` for the
``S`` source tokens. Sources with the highest E are merged away. A score is one function of R, A
and a `Context`; `score` adds one under a name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from turbovlm.errors import ConfigError
from turbovlm.maths.hashing import random_scores

SEMANTIC_SCALE = 30.0
"""The released code multiplies A by 30 before alpha; the paper's text does not mention it. Our
alpha means what the paper's tables mean, so ``alpha=6`` weighs A by 180."""

MEAN_WEIGHT = 0.2
"""Share of the fitted weight where no cls token guides. The attention of the mean query says
less: in encoders it helps a little at a fifth of the weight, and does harm at the full weight."""

COPY = 1e-6
"""Smallest distance 1 - R that is distinguished from 0: about the precision of a cosine in fp32."""


@dataclass(frozen=True)
class Context:
    """What a score may need beside R and A.

    Attributes:
        tokens: N, or ``(B, 1)`` the tokens of each sample that are not padding.
        block: index of the block, from 0.
        alpha: the configured weight of A; None asks for one that fits each sample and block.
        seed: of pseudo-random scores.
        share: of the fitted weight that this guide deserves: 1 for cls.
        real: ``(B, S)`` bool, False for padding; None where there is none.
    """

    tokens: int | Tensor
    block: int = 0
    alpha: float | None = None
    seed: int = 0
    share: float | Tensor = 1.0
    real: Tensor | None = None


ScoreFunction = Callable[[Tensor, Tensor | None, Context], Tensor]


@dataclass(frozen=True)
class Score:
    """A way of choosing the tokens that are merged away.

    Attributes:
        name: what ``method=`` says.
        function: ``(R, A, context) -> E``, ``(B, S)`` each. A is None where `guide` is False.
        guide: whether it reads A, so that the guide's row of attention is computed only then.
        options: which of ``alpha`` and ``seed`` it reads; a configuration refuses the others.
        random_pairs: destinations are drawn too (Table 8, A1).
    """

    name: str
    function: ScoreFunction
    guide: bool = True
    options: frozenset[str] = frozenset()
    random_pairs: bool = False

    def reads_value(self, alpha: float | None) -> bool:
        """Whether A is needed with this alpha: a weight of 0 needs none."""
        return self.guide and not ("alpha" in self.options and alpha == 0)


_SCORES: dict[str, Score] = {}


def score(
    name: str, *, guide: bool = True, options: tuple[str, ...] = (), random_pairs: bool = False
) -> Callable[[ScoreFunction], ScoreFunction]:
    """Add a score, so that ``method=name`` works in every configuration and command.

    Args:
        name: not yet taken.
        guide: whether the function reads A.
        options: which of ``"alpha"`` and ``"seed"`` it reads from the context.
        random_pairs: draw the destinations too.

    Raises:
        ConfigError: if the name is taken or an option is unknown.
    """
    if name in _SCORES:
        raise ConfigError(f"a score {name!r} exists already: choose another name")
    if unknown := set(options) - {"alpha", "seed"}:
        raise ConfigError(f"a score can read alpha and seed, not {', '.join(sorted(unknown))}")

    def add(function: ScoreFunction) -> ScoreFunction:
        _SCORES[name] = Score(name, function, guide, frozenset(options), random_pairs)
        return function

    return add


def score_names() -> tuple[str, ...]:
    """Every ``method=`` that exists, built-in ones first."""
    return tuple(_SCORES)


def find_score(name: str) -> Score:
    """The score of this name.

    Raises:
        ConfigError: if there is none.
    """
    if not isinstance(name, str) or name not in _SCORES:
        raise ConfigError(f"method must be one of {', '.join(_SCORES)}, not {name!r}")
    return _SCORES[name]


@score("turbo", options=("alpha",))
def turbo(redundancy: Tensor, value: Tensor | None, context: Context) -> Tensor:
    """S1 (Eq. 12): ``R - alpha A``; without a number for alpha, see `fitted_weight`."""
    if value is None:
        return redundancy
    if context.alpha is not None:
        return torch.sub(redundancy, value, alpha=context.alpha * SEMANTIC_SCALE)
    return redundancy.addcmul(fitted_weight(redundancy, context), value, value=-1)


@score("redundancy", guide=False)
def by_redundancy(redundancy: Tensor, _: Tensor | None, __: Context) -> Tensor:
    """R alone: the paper's first baseline, ToMe."""
    return redundancy


@score("semantics")
def by_semantics(_: Tensor, value: Tensor | None, __: Context) -> Tensor:
    """``-A`` alone: the paper's second baseline."""
    assert value is not None
    return -value


@score("random", guide=False, options=("seed",), random_pairs=True)
def at_random(redundancy: Tensor, _: Tensor | None, context: Context) -> Tensor:
    """The same pseudo-random numbers for every sample (Table 8, A1)."""
    sources = redundancy.shape[-1]
    drawn = random_scores(sources, context.seed, context.block, redundancy.device)
    return drawn.expand(redundancy.shape)


def semantic_value(logits: Tensor) -> Tensor:
    """Eq. 8: softmax of the guide's attention logits, averaged over heads.

    Args:
        logits: ``(B, H, N)`` scaled dot products of the guide query with all keys, with the
            ``log size`` bias already added.

    Returns:
        ``(B, N)`` fp32, each row sums to 1.
    """
    return logits.softmax(-1, dtype=torch.float32).mean(1)


def typical_distance(redundancy: Tensor, real: Tensor | None = None) -> Tensor:
    """``(B, 1)``: the geometric mean of 1 - R over the sources of each sample.

    Args:
        redundancy: R ``(B, S)``.
        real: ``(B, S)`` bool, False for padding, which does not count.
    """
    logs = (1 - redundancy).clamp_min_(COPY).log_()
    if real is None:
        return logs.mean(-1, keepdim=True).exp_()
    total = logs.masked_fill(~real, 0).sum(-1, keepdim=True)
    return (total / real.sum(-1, keepdim=True).clamp_min(1)).exp()


def fitted_weight(redundancy: Tensor, context: Context) -> Tensor:
    """``(B, 1)``: the weight of A that fits each sample and block.

    A token that gets the average attention (A = 1 / N) loses as much degree as the typical
    distance to a best destination is, see `typical_distance`. So A and 1 - R stand in the same
    units: A shrinks as N grows, and where most tokens are nearly copies of others, the
    differences among those that are not count for more than a guide that may know little.
    """
    return typical_distance(redundancy, context.real) * (context.tokens * context.share)
