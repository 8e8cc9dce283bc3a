"""The attention tap: sees the one attention computation of a half block, whoever wrote it.

A torch function mode, open only while the attention half runs. It adds ``log size`` to the
logits and takes what matching needs: the keys (or queries) averaged over heads, and the guide's
row of logits. With fused attention nothing of size N x N is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from turbovlm.config import Metric
from turbovlm.errors import UnsupportedInput
from turbovlm.maths.information import semantic_value
from turbovlm.plug.row import Guide

FUSED = F.scaled_dot_product_attention
_PACKED = F.multi_head_attention_forward
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
SOFTMAX = (torch.softmax, F.softmax, Tensor.softmax)


class Tap(TorchFunctionMode):
    """Watches the first attention call of a half block: later ones are cross-attention.

    Args:
        bias: ``(B, N)`` fp32 ``log size``, or None before the first merge.
        guide: whose attention measures the semantic value; None takes no row.
        metric: which vectors to keep for matching; None keeps none.
        real: ``(B, N)`` bool, False for padding, whose queries must not count in the mean.

    Attributes:
        calls: attention computations seen; 0 after the half block means they were hidden.
        metric: ``(B, N, d)`` keys or queries averaged over heads.
        value: ``(B, N)`` fp32 semantic value A.
    """

    def __init__(
        self,
        bias: Tensor | None,
        guide: Guide | None,
        metric: Metric | None,
        real: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.bias, self.guide, self.which, self.real = bias, guide, metric, real
        self.calls = 0
        self.metric: Tensor | None = None
        self.value: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Route the first attention to one of the three below, everything else straight on."""
        kwargs = kwargs or {}
        if self.calls == 0:
            if func is FUSED:
                return self._fused(*args, **kwargs)
            if func is _PACKED:
                return self._packed(*args, **kwargs)
            if func in _PRODUCTS and self.metric is None and args[0].dim() == 4:
                self._keep(args[0], args[1].transpose(-1, -2))  # eager: the first product is q k^T
            elif func in SOFTMAX and args[0].dim() == 4:
                return self._eager(func, args[0], *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _keep(self, query: Tensor, key: Tensor) -> None:
        if self.which is not None:
            # averaged at once: holding on to q or k would keep the whole qkv alive in the MLP;
            # over the (B, N, H, d) view, which is how a joint projection lies in memory
            self.metric = (key if self.which == "key" else query).transpose(1, 2).mean(2)

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
        self._keep(query, key)
        if self.guide is not None:
            row = query[:, :, :1] if self.guide == "cls" else self._mean(query).unsqueeze(2)
            logits = _row_logits(row, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
            self._measure(logits)
        if self.bias is not None:
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
        """What `torch.nn.MultiheadAttention` calls, ``(N, B, C)``: one operator to a tap, which
        cannot look inside, so its self-attention is written out here.
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
        return F.linear(mixed.transpose(1, 2).flatten(2), out_weight, out_bias).transpose(
            0, 1
        ), None

    def _eager(self, func: Callable[..., Any], logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Softmax over materialised logits."""
        self.calls += 1
        if self.guide is not None:
            self._measure(logits[:, :, 0] if self.guide == "cls" else self._mean(logits))
        if self.bias is not None:
            logits = logits + self.bias[:, None, None].to(logits.dtype)
        return func(logits, *args, **kwargs)

    def _mean(self, rows: Tensor) -> Tensor:
        """``(B, H, N, d)`` -> ``(B, H, d)``: the mean over the queries that are no padding."""
        if self.real is None:
            return rows.mean(2)
        real = self.real.to(rows.dtype)[:, None, :, None]
        return (rows * real).sum(2) / real.sum(2).clamp_min(1)

    def _measure(self, logits: Tensor) -> None:
        logits = logits.float()
        if self.bias is not None:
            logits = logits + self.bias[:, None]
        self.value = semantic_value(logits)


def with_bias(mask: Tensor | None, bias: Tensor) -> Tensor:
    """A mask of fused attention with ``bias`` ``(B, 1, 1, N)`` of the logits in it.

    The bias comes in the query's dtype: a wider mask is wrong without a word on some kernels.
    """
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return mask + bias


def _row_logits(row: Tensor, key: Tensor) -> Tensor:
    """``(B, H, 1, d)`` times ``(B, H, N, d)`` -> ``(B, H, N)``.

    Multiply and sum over the ``(B, N, H, d)`` view: keys come out of a joint projection, and a
    batched product would first copy them all.
    """
    if key.shape[1] != row.shape[1]:  # grouped queries share a key head
        key = key.repeat_interleave(row.shape[1] // key.shape[1], 1)
    return (key.transpose(1, 2) * row.transpose(1, 2)).sum(-1).transpose(1, 2)
