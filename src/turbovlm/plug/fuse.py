"""Faster attention without merging, where transformers leaves time on the table.

BLIP's vision encoder ships eager only, and the packed towers of Qwen2-VL and its successors call
attention once a segment. A separate option, so that a speed table can show which share of a gain
is this and which is merging. It changes no weights and, up to rounding, no result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from turbovlm.errors import AlreadyApplied, NotApplied, NothingToPatch, UnsuitableBlock
from turbovlm.plug.names import is_named
from turbovlm.plug.segments import SegmentedAttention
from turbovlm.plug.swap import Swap, install, parameters_of, plain_class, site_of, uninstall

_HF = "transformers.models"
EAGER = (f"{_HF}.blip.modeling_blip.BlipAttention",)
PACKED = (
    f"{_HF}.qwen2_vl.modeling_qwen2_vl.VisionAttention",
    f"{_HF}.qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLVisionAttention",
    f"{_HF}.qwen3_vl.modeling_qwen3_vl.Qwen3VLVisionAttention",
    f"{_HF}.qwen3_vl_moe.modeling_qwen3_vl_moe.Qwen3VLMoeVisionAttention",
    f"{_HF}.qwen3_5.modeling_qwen3_5.Qwen3_5VisionAttention",
    f"{_HF}.qwen3_5_moe.modeling_qwen3_5_moe.Qwen3_5MoeVisionAttention",
    f"{_HF}.glm4v.modeling_glm4v.Glm4vVisionAttention",
)

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class FuseSite:
    """A fused attention, the class it had and the names of what it takes.

    Without a patch, `turbovlm.remove` leaves it.
    """

    host: type[nn.Module]
    names: tuple[str, ...]
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
        # the heads may be narrower than the width: pruning leaves such
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=self.scale
        )
        return self.projection(mixed.transpose(1, 2).flatten(2)), None


def fuse_attention(model: Model) -> Model:
    """Let vision attention that transformers runs slowly use fused kernels, in place.

    BLIP's vision encoder gets scaled-dot-product attention, the same function up to rounding.
    The packed towers of Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and GLM-4V attend within images or
    windows: all segments of one length go in one call, bit for bit the same on a CPU.

    Raises:
        NothingToPatch: if the model holds neither. Other models in transformers have fused
            attention already (``attn_implementation="sdpa"``, the default).
        UnsuitableBlock: if a packed tower does not use ``attn_implementation="sdpa"``.
        AlreadyApplied: if it is fused already.
    """
    if _fused(model):
        raise AlreadyApplied("attention is fused already: turbovlm.unfuse_attention(model) first")
    swaps = [s for m in model.modules() if (s := _swap(m)) is not None]
    if not swaps:
        raise NothingToPatch(
            f"{type(model).__name__} has neither BLIP's vision attention nor a packed tower to "
            "fuse: transformers' other encoders are fused already (attn_implementation='sdpa')"
        )
    install(swaps)
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


def _swap(module: nn.Module) -> Swap | None:
    if is_named(module, EAGER):
        mixin: type[nn.Module] = FusedAttention
    elif is_named(module, PACKED):
        mixin = SegmentedAttention
        chosen = getattr(module.config, "_attn_implementation", None)
        if chosen != "sdpa":
            raise UnsuitableBlock(
                f"the vision tower runs with attn_implementation={chosen!r}; only 'sdpa' calls a "
                "fused kernel once a segment: model.set_attn_implementation('sdpa') first"
            )
    else:
        return None
    host = plain_class(module)
    return Swap(module, mixin, FuseSite(host, parameters_of(host.forward)))
