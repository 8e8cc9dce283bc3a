"""Information degree: how little a token would be missed (paper section 3, Eq. 6, 8 and 12).

Symbols: R mutual redundancy, A semantic value, E information degree, all ``(B, S)`` for the
``S`` source tokens. Sources with the highest E are merged away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turbovlm.config import Merge

SEMANTIC_SCALE = 30.0
"""The released code multiplies A by 30 before alpha; the paper's text does not mention it. Our
alpha means what the paper's tables mean, so ``alpha=6`` weighs A by 180."""

MEAN_WEIGHT = 0.2
"""Share of the default weight where no cls token guides. The mean query's attention
says less: in encoders it helps a little at a fifth of the weight, and costs more than it brings
at the whole."""

COPY = 1e-6
"""Least distance 1 - R that is told from none: about the precision of a cosine in fp32."""


def semantic_value(logits: Tensor) -> Tensor:
    """Eq. 8: softmax of the guide's attention logits, averaged over heads.

    Args:
        logits: ``(B, H, N)`` scaled dot products of the guide query with all keys, with the
            ``log size`` bias already added.

    Returns:
        ``(B, N)`` fp32, each row sums to 1.
    """
    return logits.float().softmax(-1).mean(1)


def typical_distance(redundancy: Tensor, real: Tensor | None = None) -> Tensor:
    """``(B, 1)``: the geometric mean of 1 - R over the sources of each sample.

    Args:
        redundancy: R ``(B, S)``.
        real: ``(B, S)`` bool, False for padding, which does not count.
    """
    logs = (1 - redundancy).clamp_min(COPY).log()
    if real is None:
        return logs.mean(-1, keepdim=True).exp()
    total = logs.masked_fill(~real, 0).sum(-1, keepdim=True)
    return (total / real.sum(-1, keepdim=True).clamp_min(1)).exp()


def alpha_for(
    alpha: float | None,
    redundancy: Tensor,
    tokens: int | Tensor,
    guide: str | None = "cls",
    real: Tensor | None = None,
) -> float | Tensor:
    """alpha: the configured number, or the one ``(B, 1)`` that fits each sample and block.

    Without a number, a token that gets the average attention (A = 1 / N) loses as much degree as
    the typical distance to a best destination is, see `typical_distance`. So A and 1 - R stand in
    the same units: A shrinks as N grows, and where most tokens are nearly copies of others, the
    differences among those that are not count for more than a guide that may know little.

    Args:
        alpha: as configured, None for the default.
        redundancy: R ``(B, S)``.
        tokens: N, or ``(B, 1)`` the tokens of each sample that are no padding.
        guide: what supplies A, ``"cls"`` or ``"mean"``, which weighs a fifth.
        real: ``(B, S)`` bool, False for padding.
    """
    if alpha is not None:
        return alpha
    weight = tokens / SEMANTIC_SCALE * (MEAN_WEIGHT if guide == "mean" else 1.0)
    return typical_distance(redundancy, real) * weight


def information_degree(
    redundancy: Tensor,
    value: Tensor | None,
    config: Merge,
    *,
    block: int,
    tokens: int | Tensor,
    guide: str | None = "cls",
    real: Tensor | None = None,
) -> Tensor:
    """E by the configured method and fusion strategy (supplementary Eq. 3 to 6).

    Args:
        redundancy: R ``(B, S)``, cosine similarity with the best destination.
        value: A ``(B, S)`` of the same tokens; may be None where `needs_guide` is False.
        config: method, fusion, alpha, beta and gamma.
        block: index of the block from 0 (S4 and the paper count from 1).
        tokens: N, or ``(B, 1)`` the tokens of each sample that are no padding.
        guide: what supplies A, for the default alpha.
        real: ``(B, S)`` bool, False for padding, which must not sway the default alpha.

    Returns:
        ``(B, S)`` fp32.
    """
    if config.method == "random":
        return random_scores(redundancy.shape[-1], config.seed, block, redundancy.device).expand(
            redundancy.shape
        )
    if value is None:
        return redundancy
    if config.method == "semantics":
        return -value
    scaled = value * SEMANTIC_SCALE
    if config.fusion == "S2":
        return redundancy / scaled.clamp_min(torch.finfo(torch.float32).tiny)
    alpha = alpha_for(config.alpha, redundancy, tokens, guide, real)
    match config.fusion:
        case "S1":
            return redundancy - alpha * scaled
        case "S3":
            return redundancy * (1 - alpha * scaled)
        case "S4":
            weight = config.beta ** abs(config.gamma - (block + 1))
            return redundancy - weight * alpha * scaled


def needs_guide(config: Merge) -> bool:
    """Whether the score uses A at all, so that the guide row is computed only then."""
    if config.method == "turbo":
        return config.fusion == "S2" or config.alpha != 0
    return config.method == "semantics"


def random_scores(count: int, seed: int, block: int, device: torch.device) -> Tensor:
    """``(count,)`` pseudo-random numbers in [0, 1): the same on every device, and traceable.

    An integer hash of (seed, block, position) rather than a `torch.Generator`, which would
    break the graph under torch.compile.
    """
    # modulo 2^31 with 16-bit factors keeps every product inside int64
    x = torch.arange(1, count + 1, device=device, dtype=torch.int64)
    x = (x * 40503 + (seed % 65521) * 60493 + (block + 1) * 30011) % 2147483647
    for factor in (48271, 69621, 16807):
        x = (x ^ (x >> 13)) * factor % 2147483647
    return x.float() / 2147483647
