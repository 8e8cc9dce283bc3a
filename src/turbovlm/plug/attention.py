"""Attention, as a patched model computes it: a function mode that adds log size and observes.

It is open only while one attention runs, and sees it in every form: scaled-dot-product
attention, an eager product and softmax (whole, or in slices of the batch times the heads, as
diffusers has both), `torch.nn.MultiheadAttention`. It adds ``log size`` to the logits and, for
matching, takes the keys (or queries) averaged over heads and the guide's row of logits. With
fused attention nothing of size N x N is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from turbovlm import kernels
from turbovlm.errors import UnsupportedInput
from turbovlm.maths.score import semantic_value

FUSED = F.scaled_dot_product_attention
_PACKED = F.multi_head_attention_forward
_PRODUCTS = frozenset((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm))
_SOFTMAX = frozenset((torch.softmax, F.softmax, Tensor.softmax))
_WATCHED = frozenset((FUSED, _PACKED)) | _PRODUCTS | _SOFTMAX

Guide = Literal["cls", "mean"]
Metric = Literal["key", "query"]


@dataclass(frozen=True)
class Look:
    """What matching needs to see of an attention.

    Attributes:
        metric: which vectors measure similarity.
        guide: whose attention is the semantic value; None takes no row.
        real: ``(B, N)`` bool, False for padding, whose queries must not count in the mean.
    """

    metric: Metric = "key"
    guide: Guide | None = None
    real: Tensor | None = None


class Attention(TorchFunctionMode):
    """Watches the first attention while it is open; later ones are cross-attention.

    Args:
        bias: ``(B, N)`` fp32 ``log size`` of the keys, or None before the first merge.
        look: what matching needs, or None.
        heads: of an attention that may come in slices of the batch times the heads.

    Attributes:
        calls: attentions seen; 0 at the end means that a kernel hid them.
        metric: ``(B, N, d)`` keys or queries averaged over heads.
        value: ``(B, N)`` fp32 semantic value A.
        unit: ``(B, N, d)`` fp32 the metric at length 1, in place of it where a kernel looked.
        logits: ``(B, H, N)`` fp32 of the guide, in place of the value likewise.
    """

    def __init__(
        self, bias: Tensor | None, look: Look | None = None, heads: int | None = None
    ) -> None:
        super().__init__()
        self.bias, self.look, self.heads = bias, look, heads
        self.calls = 0
        self._rows = 0
        self.metric: Tensor | None = None
        self.value: Tensor | None = None
        self.unit: Tensor | None = None
        self.logits: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Route the first attention to one of those below, everything else straight on."""
        if self.calls or func not in _WATCHED:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if func is FUSED:
            return self._fused(*args, **kwargs)
        if func is _PACKED:
            return self._packed(*args, **kwargs)
        if func in _SOFTMAX:
            return self._eager(func, args[0], *args[1:], **kwargs)
        first = self.look is not None and self.metric is None and func in _PRODUCTS
        if first and args[0].dim() == 4:  # eager: the first product is q k^T
            self._keep(args[0], args[1].transpose(-1, -2))
        return func(*args, **kwargs)

    def _keep(self, query: Tensor, key: Tensor) -> None:
        assert self.look is not None
        # averaged at once: holding on to q or k would keep the whole qkv alive in the MLP;
        # over the (B, N, H, d) view, which is how a joint projection lies in memory
        seen = key if self.look.metric == "key" else query
        self.metric = seen.transpose(1, 2).mean(2)

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Scaled-dot-product attention."""
        if is_causal:
            raise UnsupportedInput(
                "the attention is causal: a decoder's tokens cannot be merged, patch an encoder"
            )
        self.calls += 1
        if self.bias is not None and self.bias.shape[0] != query.shape[0]:
            raise UnsupportedInput(
                f"{query.shape[0]} of {self.bias.shape[0]} samples attend by themselves "
                "(perturbed-attention guidance does that), so merged tokens cannot count as often "
                "as they have members: use MergeRestore(proportional=False), or self_attention=0"
            )
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        fast = kernels.wanted(query, key, value)
        if self.look is not None:
            row = None
            if self.look.guide is not None:
                row = query[:, :, :1] if self.look.guide == "cls" else self._mean(query)
            if fast:
                seen = key if self.look.metric == "key" else query
                guide = None if row is None else row[:, :, 0]
                self.unit, self.logits = kernels.look(seen, guide, self.bias, factor)
            else:
                self._keep(query, key)
                if row is not None:
                    self._measure(row_logits(row, key), factor)
        if self.bias is not None:
            if fast and attn_mask is None and not dropout_p:
                return kernels.attend(query, key, value, self.bias, factor)
            attn_mask = with_bias(attn_mask, self.bias[:, None, None].to(query.dtype))
        return FUSED(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)

    def _packed(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        width: int,
        heads: int,
        weight: Tensor | None,
        bias: Tensor | None,
        bias_k: Tensor | None,
        bias_v: Tensor | None,
        zero: bool,
        dropout: float,
        out_weight: Tensor,
        out_bias: Tensor | None,
        training: bool = True,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """What `torch.nn.MultiheadAttention` calls, ``(N, B, C)``: one operator to this mode,
        which cannot look inside, so its self-attention is written out here.
        """
        masks = (bias_k, key_padding_mask, attn_mask)
        if key is not query or weight is None or zero or any(m is not None for m in masks):
            raise UnsupportedInput(
                "MultiheadAttention is used here with masks, key biases or separate keys, which "
                "cannot be followed through a merge: patch a plain self-attention encoder"
            )
        joint = F.linear(query.transpose(0, 1), weight, bias).unflatten(-1, (3, heads, -1))
        mixed = self._fused(
            *joint.permute(2, 0, 3, 1, 4).unbind(0), dropout_p=dropout if training else 0.0
        )
        out = F.linear(mixed.transpose(1, 2).flatten(2), out_weight, out_bias)
        return out.transpose(0, 1), None

    def _eager(self, func: Callable[..., Any], logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Softmax over materialised logits ``(B, H, N, M)``, or slices of ``(B H, N, M)``."""
        if logits.dim() == 4:
            self.calls += 1
            if self.look is not None and self.look.guide is not None:
                cls = self.look.guide == "cls"
                self._measure(logits[:, :, 0] if cls else self._mean(logits)[:, :, 0])
            if self.bias is not None:
                logits = logits + self.bias[:, None, None].to(logits.dtype)
        elif self.heads is not None and self.bias is not None:
            logits = logits + self._next_rows(logits.shape[0]).to(logits.dtype)
        return func(logits, *args, **kwargs)

    def _next_rows(self, count: int) -> Tensor:
        """The bias of the next ``count`` of batch times heads, ``(count, 1, M)``."""
        assert self.heads is not None
        assert self.bias is not None
        first, self._rows = self._rows, self._rows + count
        self.calls = int(self._rows >= self.heads * self.bias.shape[0])
        return self.bias.repeat_interleave(self.heads, 0)[first : self._rows, None]

    def _mean(self, rows: Tensor) -> Tensor:
        """``(B, H, N, d)`` -> ``(B, H, 1, d)``: the mean over the queries that are not padding."""
        real = None if self.look is None else self.look.real
        if real is None:
            return rows.mean(2, keepdim=True)
        weight = real.to(rows.dtype)[:, None, :, None]
        return (rows * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True).clamp_min(1)

    def _measure(self, logits: Tensor, factor: float = 1.0) -> None:
        if self.bias is not None:
            logits = torch.add(self.bias[:, None], logits.float(), alpha=factor)
        elif factor != 1:
            logits = logits * factor
        self.value = semantic_value(logits)


def with_bias(mask: Tensor | None, bias: Tensor) -> Tensor:
    """A mask of fused attention with ``bias`` ``(B, 1, 1, N)`` of the logits in it.

    The bias comes in the query's dtype: with a wider mask some kernels silently compute a wrong
    result.
    """
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return mask + bias


def row_logits(row: Tensor, key: Tensor) -> Tensor:
    """``(B, H, 1, d)`` times ``(B, H, N, d)`` -> ``(B, H, N)``.

    Multiply and sum over the ``(B, N, H, d)`` view: keys come out of a joint projection, and a
    batched product would first copy them all.
    """
    if key.shape[1] != row.shape[1]:  # grouped queries share a key head
        key = key.repeat_interleave(row.shape[1] // key.shape[1], 1)
    return (key.transpose(1, 2) * row.transpose(1, 2)).sum(-1).transpose(1, 2)
