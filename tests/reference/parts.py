"""The children of one block by their role, whatever the host calls them: for the oracle only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Parts:
    """A block as its pieces; ``post_norm`` blocks are BERT's."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.post_norm = hasattr(block, "intermediate") and not hasattr(block, "layernorm_before")
        # timm's residual post-norm blocks: x + norm(f(x))
        self.late_norm = "PostNorm" in type(block).__name__ or "ResPost" in type(block).__name__
        self.attention: Any = next(
            getattr(block, n)
            for n in ("attn", "self_attn", "self_attention", "attention")
            if hasattr(block, n)
        )

    def _first(self, *names: str) -> Any:
        found = (getattr(self.block, n, None) for n in names)
        return next((f for f in found if f is not None), nn.Identity())

    def _scaled(self, x: Tensor, *names: str) -> Tensor:
        scale = self._first(*names)
        return x * scale if isinstance(scale, Tensor) else scale(x)

    def attention_branch(self, x: Tensor, run: Any) -> Tensor:
        """x after attention and its residual; ``run`` is the attention from tokens to output."""
        if self.post_norm:
            return self.attention.output.LayerNorm(run(x) + x)
        norm = self._first(
            "norm1",
            "layer_norm1",
            "layernorm_before",
            "rms_norm1",
            "ln_1",
            "self_attn_layer_norm",
            "attention_norm",
        )
        if self.late_norm:
            return x + norm(run(x))
        after = self._first("ln_attn")
        return x + self._scaled(
            after(run(norm(x))), "ls1", "layer_scale1", "lambda_1", "gamma_1", "ls_1"
        )

    def mlp_branch(self, x: Tensor) -> Tensor:
        """x after the MLP and its residual."""
        if self.post_norm:
            hidden = torch.nn.functional.gelu(self.block.intermediate.dense(x))
            return self.block.output.LayerNorm(self.block.output.dense(hidden) + x)
        norm = self._first(
            "norm2",
            "layer_norm2",
            "layernorm_after",
            "rms_norm2",
            "ln_2",
            "final_layer_norm",
            "ffn_norm",
        )
        if hasattr(self.block, "fc1"):
            hidden = torch.nn.functional.gelu(self.block.fc1(norm(x)))
            return x + self.block.fc2(hidden)
        if hasattr(block := self.block, "intermediate"):
            hidden = torch.nn.functional.gelu(block.intermediate.dense(norm(x)))
            return x + block.output.dense(hidden)
        mlp = self._first("mlp", "ffn", "feed_forward")
        if self.late_norm:
            return x + norm(mlp(x))
        return x + self._scaled(mlp(norm(x)), "ls2", "layer_scale2", "lambda_2", "gamma_2", "ls_2")

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Projections of ``(N, C)`` and the number of heads; norms of q and k included."""
        a = getattr(self.attention, "self", getattr(self.attention, "attention", self.attention))
        heads = next(
            getattr(a, n)
            for n in ("num_heads", "num_attention_heads")
            if getattr(a, n, None) is not None
        )
        if hasattr(a, "in_proj_weight"):
            q, k, v = (h @ a.in_proj_weight.T + a.in_proj_bias).chunk(3, dim=-1)
        elif getattr(a, "qkv", None) is not None:
            joint = h @ a.qkv.weight.T
            if a.qkv.bias is not None:
                joint = joint + a.qkv.bias
            elif getattr(a, "q_bias", None) is not None:
                joint = joint + torch.cat([a.q_bias, torch.zeros_like(a.q_bias), a.v_bias])
            q, k, v = joint.chunk(3, dim=-1)
        elif hasattr(a, "q_proj"):
            q, k, v = a.q_proj(h), a.k_proj(h), a.v_proj(h)
        else:
            q, k, v = a.query(h), a.key(h), a.value(h)
        width = q.shape[-1] // heads
        for name, other, which in (("q_norm", "ln_q", 0), ("k_norm", "ln_k", 1)):
            norm = getattr(a, name, getattr(a, other, None))
            if norm is None or isinstance(norm, nn.Identity):
                continue
            given = (q, k)[which]
            whole = norm.weight.shape[0] == given.shape[-1]  # over all heads at once, or each
            done = norm(given) if whole else norm(given.unflatten(-1, (heads, width))).flatten(-2)
            q, k = (done, k) if which == 0 else (q, done)
        return q, k, v, heads

    def out(self, o: Tensor) -> Tensor:
        """Output projection of the attention."""
        if hasattr(self.attention, "output"):
            return self.attention.output.dense(o)
        names = ("proj", "projection", "projection_layer", "out_proj", "o_proj")
        return next(getattr(self.attention, n) for n in names if hasattr(self.attention, n))(o)
