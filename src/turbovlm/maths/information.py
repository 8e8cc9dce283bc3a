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

PAPER_ALPHA = 6.0
PAPER_TOKENS = 577
"""The paper's Table of fusion strategies: alpha 6, for BLIP at 384 px with patches of 16."""

MEAN_ALPHA = 0.6
"""The default at `PAPER_TOKENS` where no cls token guides. The mean query's attention says less: it
helps a little at a tenth of the weight, and costs more than it brings at the whole."""


def semantic_value(logits: Tensor) -> Tensor:
    """Eq. 8: softmax of the guide's attention logits, averaged over heads.

    Args:
        logits: ``(B, H, N)`` scaled dot products of the guide query with all keys, with the
            ``log size`` bias already added.

    Returns:
        ``(B, N)`` fp32, each row sums to 1.
    """
    return logits.float().softmax(-1).mean(1)


def alpha_for(config: Merge, tokens: int, guide: str | None = "cls") -> float:
    """alpha for a sequence of ``tokens``: the configured number, or the one that follows N.

    ``guide`` is what supplies A, ``"cls"`` or ``"mean"``. A sums to 1 over the sequence, so a token
    of a shorter one gets a larger share. Without a number, alpha is the paper's at the paper's
    length and in proportion to N elsewhere, which keeps the weight of the average token the same.
    """
    if config.alpha is not None:
        return config.alpha
    return (MEAN_ALPHA if guide == "mean" else PAPER_ALPHA) * tokens / PAPER_TOKENS


def information_degree(
    redundancy: Tensor,
    value: Tensor | None,
    config: Merge,
    *,
    block: int,
    tokens: int,
    guide: str | None = "cls",
) -> Tensor:
    """E by the configured method and fusion strategy (supplementary Eq. 3 to 6).

    Args:
        redundancy: R ``(B, S)``, cosine similarity with the best destination.
        value: A ``(B, S)`` of the same tokens; may be None where `needs_guide` is False.
        config: method, fusion, alpha, beta and gamma.
        block: index of the block from 0 (S4 and the paper count from 1).
        tokens: length of the sequence, for the default alpha.
        guide: what supplies A, for the default alpha.

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
    scaled, alpha = value * SEMANTIC_SCALE, alpha_for(config, tokens, guide)
    match config.fusion:
        case "S1":
            return redundancy - alpha * scaled
        case "S2":
            return redundancy / scaled.clamp_min(torch.finfo(torch.float32).tiny)
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
