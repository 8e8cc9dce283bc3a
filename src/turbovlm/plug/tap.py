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
from turbovlm.maths.information import semantic_value
from turbovlm.plug.row import Guide

_FUSED = F.scaled_dot_product_attention
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
_SOFTMAX = (torch.softmax, F.softmax, Tensor.softmax)


class Tap(TorchFunctionMode):
    """Watches one attention call.

    Args:
        bias: ``(B, N)`` fp32 ``log size``, or None before the first merge.
        guide: whose attention measures the semantic value; None takes no row.
        metric: which vectors to keep for matching; None keeps none.

    Attributes:
        calls: attention computations seen; 0 after the half block means they were hidden.
        metric: ``(B, N, d)`` keys or queries averaged over heads.
        value: ``(B, N)`` fp32 semantic value A.
    """

    def __init__(self, bias: Tensor | None, guide: Guide | None, metric: Metric | None) -> None:
        super().__init__()
        self.bias, self.guide, self.which = bias, guide, metric
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
        """Route attention through `_fused` or `_eager`, everything else straight on."""
        kwargs = kwargs or {}
        if func is _FUSED:
            return self._fused(*args, **kwargs)
        if func in _PRODUCTS and self.metric is None and args[0].dim() == 4:
            self._keep(args[0], args[1].transpose(-1, -2))  # eager: the first product is q k^T
        elif func in _SOFTMAX and args[0].dim() == 4:
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
        self.calls += 1
        self._keep(query, key)
        if self.guide is not None:
            row = query[:, :, :1] if self.guide == "cls" else query.mean(2, keepdim=True)
            logits = _row_logits(row, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
            self._measure(logits)
        if self.bias is not None:
            # cast: a wider mask than the query is wrong without a word on some kernels
            bias = self.bias[:, None, None].to(query.dtype)
            if attn_mask is None:
                attn_mask = bias
            elif attn_mask.dtype == torch.bool:
                attn_mask = torch.where(attn_mask, bias, float("-inf"))
            else:
                attn_mask = attn_mask + bias
        return _FUSED(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)

    def _eager(self, func: Callable[..., Any], logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.guide is not None:
            row = logits[:, :, 0] if self.guide == "cls" else logits.mean(2)
            self._measure(row)
        if self.bias is not None:
            logits = logits + self.bias[:, None, None].to(logits.dtype)
        return func(logits, *args, **kwargs)

    def _measure(self, logits: Tensor) -> None:
        logits = logits.float()
        if self.bias is not None:
            logits = logits + self.bias[:, None]
        self.value = semantic_value(logits)


def _row_logits(row: Tensor, key: Tensor) -> Tensor:
    """``(B, H, 1, d)`` times ``(B, H, N, d)`` -> ``(B, H, N)``.

    Multiply and sum over the ``(B, N, H, d)`` view: keys come out of a joint projection, and a
    batched product would first copy them all.
    """
    return (key.transpose(1, 2) * row.transpose(1, 2)).sum(-1).transpose(1, 2)
