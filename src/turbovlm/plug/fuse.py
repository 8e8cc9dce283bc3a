"""Fused attention for BLIP's vision encoder, which transformers ships eager only.

A separate option, so that a speed table can show which share of a gain is fusing and which is
merging. It changes no weights and, up to rounding, no result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from turbovlm.errors import AlreadyApplied, NotApplied, NothingToPatch
from turbovlm.plug.names import is_named
from turbovlm.plug.swap import Swap, install, plain_class, site_of, uninstall

ATTENTION = "transformers.models.blip.modeling_blip.BlipAttention"

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class FuseSite:
    """A fused attention and the class it had; without a patch, `turbovlm.remove` leaves it."""

    host: type[nn.Module]
    patch: None = None


class FusedAttention(nn.Module):
    """Mixed in front of BLIP's attention class: the same projections around a fused kernel."""

    num_heads: int
    scale: float
    dropout: nn.Dropout
    qkv: nn.Module
    projection: nn.Module

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """Tokens ``(B, N, C)`` -> ``(B, N, C)``; no attention weights exist to be returned."""
        batch, tokens, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=self.scale
        )
        return self.projection(mixed.transpose(1, 2).reshape(batch, tokens, width)), None


def fuse_attention(model: Model) -> Model:
    """Let BLIP's vision encoder use scaled-dot-product attention, in place.

    Raises:
        NothingToPatch: if the model holds no BLIP vision attention. Other models in transformers
            have fused attention already (``attn_implementation="sdpa"``, the default).
        AlreadyApplied: if it is fused already.
    """
    if _fused(model):
        raise AlreadyApplied("attention is fused already: turbovlm.unfuse_attention(model) first")
    found = [m for m in model.modules() if is_named(m, (ATTENTION,))]
    if not found:
        raise NothingToPatch(
            f"{type(model).__name__} has no BLIP vision attention to fuse: transformers' other "
            "encoders are fused already (attn_implementation='sdpa')"
        )
    install([Swap(m, FusedAttention, FuseSite(plain_class(m))) for m in found])
    return model


def unfuse_attention(model: Model) -> Model:
    """Undo `fuse_attention` exactly.

    Raises:
        NotApplied: if it was not fused.
    """
    found = _fused(model)
    if not found:
        raise NotApplied("attention is not fused: there is nothing to undo")
    for module in found:
        uninstall(module)
    return model


def _fused(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(site_of(m), FuseSite)]
