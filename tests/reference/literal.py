"""The oracle: METHOD and paper written out with loops, slow, and sharing no code with turbovlm.

`merge_step` follows Eq. 6, 8, 12 and 13 token by token; `encode` runs a whole encoder layer by
layer with the merge between attention and MLP, from the host's weights alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Setting:
    """What the oracle needs to know of a configuration, as plain values."""

    r: int
    alpha: float | None = None
    fusion: str = "S1"
    beta: float = 1.0
    gamma: int = 1
    method: str = "turbo"
    metric: str = "key"
    min_tokens: int = 0
    floor_rule: str = "clamp"
    prefix: int = 1
    guide: str = "cls"
    lengths: list[int] = field(default_factory=list)


def degree(setting: Setting, r_i: float, a_i: float, block: int, n: int) -> float:
    """E of one token; the released code's factor 30 on A."""
    a_i = 30.0 * a_i
    alpha = 6.0 * n / 577 if setting.alpha is None else setting.alpha
    if setting.method == "redundancy":
        return r_i
    if setting.method == "semantics":
        return -a_i
    if setting.fusion == "S1":
        return r_i - alpha * a_i
    if setting.fusion == "S2":
        return r_i / a_i
    if setting.fusion == "S3":
        return r_i * (1 - alpha * a_i)
    weight = setting.beta ** abs(setting.gamma - (block + 1))
    return r_i - weight * alpha * a_i


def amount(setting: Setting, n: int) -> int:
    """r of this block, with the floor."""
    r = min(setting.r, (n - setting.prefix) // 2)
    if setting.floor_rule == "paper":
        return 0 if n < setting.min_tokens else r
    while r > 0 and n - r < setting.min_tokens:
        r -= 1
    return r


def merge_step(
    x: Tensor, size: Tensor, metric: Tensor, value: Tensor, setting: Setting, block: int
) -> tuple[Tensor, Tensor]:
    """One sample: x ``(N, C)``, size ``(N,)``, metric ``(N, d)``, value ``(N,)``."""
    n = x.shape[0]
    sources = [i for i in range(0, n, 2) if i >= setting.prefix]
    destinations = [j for j in range(1, n, 2) if j >= setting.prefix]
    unit = [row / row.norm() for row in metric]
    scored = []
    for i in sources:
        cosines = [float(unit[i] @ unit[j]) for j in destinations]
        r_i = max(cosines)
        goal = destinations[cosines.index(r_i)]
        scored.append((degree(setting, r_i, float(value[i]), block, n), i, goal))
    scored.sort(reverse=True)
    gone = {i: goal for _, i, goal in scored[: amount(setting, n)]}
    rows, sizes = [], []
    for t in range(n):
        if t in gone:
            continue
        group = [t] + [i for i, goal in gone.items() if goal == t]
        mass = sum(float(size[g]) for g in group)
        rows.append(sum(x[g] * float(size[g]) for g in group) / mass)  # type: ignore[arg-type]
        sizes.append(mass)
    return torch.stack(rows), torch.tensor(sizes)


class Parts:
    """The children of one block by their role, whatever the host calls them."""

    def __init__(self, block: Any) -> None:
        self.block = block
        attention = getattr(block, "attn", None) or getattr(block, "self_attn", None)
        self.attention: Any = attention if attention is not None else block.attention

    def _first(self, *names: str) -> Any:
        return next(
            (getattr(self.block, n) for n in names if hasattr(self.block, n)), nn.Identity()
        )

    def before_attention(self, x: Tensor) -> Tensor:
        return self._first("norm1", "layer_norm1", "layernorm_before")(x)

    def before_mlp(self, x: Tensor) -> Tensor:
        return self._first("norm2", "layer_norm2", "layernorm_after")(x)

    def scale_attention(self, x: Tensor) -> Tensor:
        return self._first("ls1", "layer_scale1")(x)

    def scale_mlp(self, x: Tensor) -> Tensor:
        return self._first("ls2", "layer_scale2")(x)

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        a = self.attention
        if hasattr(a, "qkv"):
            q, k, v = a.qkv(h).chunk(3, dim=-1)
        else:
            q, k, v = a.q_proj(h), a.k_proj(h), a.v_proj(h)
        heads = getattr(a, "num_heads", None) or a.num_attention_heads
        return q, k, v, heads

    def out(self, o: Tensor) -> Tensor:
        names = ("proj", "projection", "out_proj", "o_proj")
        return next(getattr(self.attention, n) for n in names if hasattr(self.attention, n))(o)


def attend(
    parts: Parts, h: Tensor, size: Tensor, guide: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One sample ``(N, C)``, head by head with materialised softmax.

    Returns the attention output, keys and queries averaged over heads, and A.
    """
    q, k, v, heads = parts.qkv(h)
    d = q.shape[-1] // heads
    outputs, rows = [], []
    for head in range(heads):
        at = slice(head * d, (head + 1) * d)
        logits = q[:, at] @ k[:, at].T / math.sqrt(d) + size.log()[None, :]
        outputs.append(logits.softmax(-1) @ v[:, at])
        if guide == "cls":
            rows.append(logits.softmax(-1)[0])
        else:
            mean_query = torch.stack([q[t, at] for t in range(q.shape[0])]).mean(0)
            rows.append((k[:, at] @ mean_query / math.sqrt(d) + size.log()).softmax(-1))
    mean = [torch.stack([t[:, i * d : (i + 1) * d] for i in range(heads)]).mean(0) for t in (k, q)]
    return parts.out(torch.cat(outputs, -1)), mean[0], mean[1], torch.stack(rows).mean(0)


@torch.no_grad()
def encode(blocks: Any, x: Tensor, setting: Setting) -> Tensor:
    """Tokens ``(B, N, C)`` through all blocks, one sample at a time, merging after attention."""
    setting.lengths.clear()
    results = []
    for sample in x:
        y, size = sample, torch.ones(sample.shape[0])
        for index, block in enumerate(blocks):
            parts = Parts(block)
            o, key, query, value = attend(parts, parts.before_attention(y), size, setting.guide)
            y = y + parts.scale_attention(o)
            metric = key if setting.metric == "key" else query
            y, size = merge_step(y, size, metric, value, setting, index)
            y = y + parts.scale_mlp(block.mlp(parts.before_mlp(y)))
            if len(results) == 0:
                setting.lengths.append(y.shape[0])
        results.append(y)
    return torch.stack(results)
