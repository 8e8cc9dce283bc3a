"""What matching needs of an attention module, without running it: similarity and semantic value.

Everything is linear in the number of tokens. Where a projection is a plain linear layer its
weights are averaged over heads, or multiplied with the guide's row, before the tokens come in, so
that no ``C x C`` product is spent; anything else (LoRA, quantized, offloaded) is called as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbovlm.maths.score import semantic_value

ATTENDED_WEIGHT = 0.1
"""Share of the default weight that attention received has: it says less than what the prompt has
changed. At a fifth, as in encoders, 10 % merged without guidance lose more than by R alone."""


def is_cross(attention: nn.Module) -> bool:
    """Whether this module attends from visual tokens to the prompt alone."""
    return bool(getattr(attention, "is_cross_attention", False))


def similarity(attention: Any, x: Tensor) -> Tensor:
    """Keys of self-attention, queries of cross-attention, averaged over heads (Eq. 6).

    Args:
        attention: the module, with ``heads``, ``to_q`` and ``to_k``.
        x: ``(B, N, C)`` what it reads.

    Returns:
        ``(B, N, d)``.
    """
    linear = attention.to_q if is_cross(attention) else attention.to_k
    if not _plain(linear):
        return linear(x).unflatten(-1, (attention.heads, -1)).mean(2)
    weight = linear.weight.unflatten(0, (attention.heads, -1)).mean(0)
    bias = linear.bias
    return F.linear(x, weight, None if bias is None else bias.view(attention.heads, -1).mean(0))


def received(attention: Any, x: Tensor, text: Tensor | None) -> Tensor:
    """Semantic value A: how much of a guide's attention each visual token receives (Eq. 8).

    The guide of self-attention is the mean query of the visual tokens; that of cross-attention is
    the mean key of the prompt's tokens, which looks back at the queries of the visual ones.

    Args:
        attention: the module.
        x: ``(B, N, C)`` visual tokens.
        text: ``(B, T, D)`` tokens of the prompt for cross-attention, else None.

    Returns:
        ``(B, N)`` fp32, each row sums to 1.
    """
    seen, asked = attention.to_k, attention.to_q(x.mean(1))
    if is_cross(attention):
        assert text is not None
        seen, asked = attention.to_q, attention.to_k(text.mean(1))
    asked = asked.unflatten(-1, (attention.heads, -1))  # (B, H, d)
    norm_asked, norm_seen = _norms(attention)
    scale = asked.shape[-1] ** -0.5
    if norm_seen is None and _plain(seen):
        # q . (W x) = (q W) . x: one product of width H; a bias shifts all tokens alike
        weight = seen.weight.unflatten(0, (attention.heads, -1))
        rows = torch.einsum("bhd,hdc->bhc", asked * scale, weight)
        return semantic_value((x @ rows.transpose(1, 2)).transpose(1, 2))
    vectors = seen(x).unflatten(-1, (attention.heads, -1))  # (B, N, H, d)
    if norm_seen is not None and norm_asked is not None:
        vectors, asked = norm_seen(vectors), norm_asked(asked)
    return semantic_value((vectors * asked.unsqueeze(1)).sum(-1).transpose(1, 2) * scale)


def changed(first: Tensor, second: Tensor) -> Tensor:
    """Semantic value A under guidance: how far the prompt has moved each visual token.

    The halves of classifier-free guidance start from the same latent, so what they differ in at a
    block is what the prompt has done so far, and it is what guidance multiplies. Nothing before
    the first cross-attention: all zero.

    Args:
        first: ``(B, N, C)`` tokens of one half as they enter the block.
        second: of the other.

    Returns:
        ``(B, N)`` fp32, each row sums to 1 or is zero.
    """
    # `norm` is five times slower on a UNet's tokens, which are channels first
    moved = (second - first).float().square().sum(-1).sqrt()
    return moved / moved.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _norms(attention: Any) -> tuple[nn.Module | None, nn.Module | None]:
    """The norms per head of what asks and of what is seen, where a model has them."""
    query, key = getattr(attention, "norm_q", None), getattr(attention, "norm_k", None)
    return (key, query) if is_cross(attention) else (query, key)


def _plain(linear: nn.Module) -> bool:
    """Whether reading the weight is the same as calling the layer."""
    return (
        type(linear) is nn.Linear
        and "forward" not in vars(linear)  # accelerate's hooks bring the weight with the call
        and not linear._forward_pre_hooks
        and not linear._forward_hooks
        and type(linear.weight) in (nn.Parameter, Tensor)  # torchao's are tensors of their own
    )
