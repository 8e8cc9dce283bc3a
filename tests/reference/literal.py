"""The oracle: METHOD and paper written out with loops, slow, and sharing no code with turbovlm.

`merge_step` follows Eq. 6, 8, 12 and 13 token by token; `encode` runs a whole encoder layer by
layer with the merge between attention and MLP, from the host's weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.reference.parts import Parts


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
    paper: bool = False  # the released code's floor and order of survivors
    prefix: int = 1
    guide: str = "cls"
    lengths: list[int] = field(default_factory=list)


@dataclass
class Rotary:
    """Tables ``(H or 1, N, d)`` of the patch tokens of one block, and how pairs are laid out."""

    cos: Tensor
    sin: Tensor
    half: bool  # pairs are (i, i + d / 2), else (2 i, 2 i + 1)

    def turn(self, x: Tensor, head: int, at: int) -> Tensor:
        """One token's vector ``(d,)`` at patch position ``at``."""
        head = min(head, self.cos.shape[0] - 1)
        partner = torch.empty_like(x)
        d = x.shape[0]
        for i in range(d):
            if self.half:
                partner[i] = -x[i + d // 2] if i < d // 2 else x[i - d // 2]
            else:
                partner[i] = -x[i + 1] if i % 2 == 0 else x[i - 1]
        return x * self.cos[head, at] + partner * self.sin[head, at]


def default_alpha(setting: Setting, redundancies: list[float], n: int) -> float:
    """What gives the average token, A = 1 / n, the geometric mean of 1 - R as its weight."""
    share = 1.0 if setting.guide == "cls" else 0.2
    logs = [math.log(max(1 - r, 1e-6)) for r in redundancies]
    return share * math.exp(sum(logs) / len(logs)) * n / 30.0


def degree(setting: Setting, r_i: float, a_i: float, block: int, alpha: float) -> float:
    """E of one token; the released code's factor 30 on A."""
    a_i = 30.0 * a_i
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
    if setting.paper:
        return 0 if n < setting.min_tokens else r
    while r > 0 and n - r < setting.min_tokens:
        r -= 1
    return r


def merge_step(
    x: Tensor, size: Tensor, metric: Tensor, value: Tensor, setting: Setting, block: int
) -> tuple[Tensor, Tensor, list[int]]:
    """One sample: x ``(N, C)``, size ``(N,)``, metric ``(N, d)``, value ``(N,)``.

    Returns tokens, sizes and which positions survive.
    """
    n = x.shape[0]
    sources = [i for i in range(0, n, 2) if i >= setting.prefix]
    destinations = [j for j in range(1, n, 2) if j >= setting.prefix]
    unit = [row / row.norm() for row in metric]
    scored = []
    for i in sources if destinations else ():
        cosines = [float(unit[i] @ unit[j]) for j in destinations]
        r_i = max(cosines)
        scored.append((r_i, i, destinations[cosines.index(r_i)]))
    alpha = setting.alpha
    if alpha is None and scored:
        alpha = default_alpha(setting, [r_i for r_i, _, _ in scored], n)
    ranked = [
        (degree(setting, r_i, float(value[i]), block, alpha or 0.0), i, goal)
        for r_i, i, goal in scored
    ]
    ranked.sort(reverse=True)
    gone = {i: goal for _, i, goal in ranked[: amount(setting, n)]}
    rows, sizes, kept = [], [], []
    order = range(n)
    if setting.paper and gone:
        order = [*range(setting.prefix), *sources, *destinations]
    for t in order:
        if t in gone:
            continue
        group = [t] + [i for i, goal in gone.items() if goal == t]
        mass = sum(float(size[g]) for g in group)
        total = sum(x[g] * float(size[g]) for g in group)
        rows.append(total / mass)  # type: ignore[operator]
        sizes.append(mass)
        kept.append(t)
    return torch.stack(rows), torch.tensor(sizes), kept


@dataclass
class Seen:
    """What one attention leaves behind: keys and queries averaged over heads, and A."""

    key: Tensor
    query: Tensor
    value: Tensor


def attend(
    parts: Parts, h: Tensor, size: Tensor, setting: Setting, rotary: Rotary | None, at: list[int]
) -> tuple[Tensor, Seen]:
    """One sample ``(N, C)``, head by head with materialised softmax; ``at`` original positions."""
    q, k, v, heads = parts.qkv(h)
    d = q.shape[-1] // heads
    split = [t.unflatten(-1, (heads, d)).clone() for t in (q, k, v)]
    if rotary is not None:
        for t in range(h.shape[0]):
            for head in range(heads):
                for tensor in split[:2] if at[t] >= setting.prefix else ():
                    tensor[t, head] = rotary.turn(
                        tensor[t, head].clone(), head, at[t] - setting.prefix
                    )
    q, k, v = split
    outputs, rows = [], []
    for head in range(heads):
        logits = q[:, head] @ k[:, head].T / math.sqrt(d) + size.log()[None, :]
        outputs.append(logits.softmax(-1) @ v[:, head])
        if setting.guide == "cls":
            rows.append(logits.softmax(-1)[0])
        else:
            mean_query = q[:, head].mean(0)
            rows.append((k[:, head] @ mean_query / math.sqrt(d) + size.log()).softmax(-1))
    seen = Seen(k.mean(1), q.mean(1), torch.stack(rows).mean(0))
    return parts.out(torch.cat(outputs, -1)), seen


def recorded(
    parts: Parts, size: Tensor, setting: Setting, rotary: Rotary | None, at: list[int]
) -> tuple[Callable[[Tensor], Tensor], list[Seen]]:
    """`attend` as a function of the tokens alone, and the list that it notes what it saw in."""
    seen: list[Seen] = []

    def run(h: Tensor) -> Tensor:
        out, found = attend(parts, h, size, setting, rotary, at)
        seen.append(found)
        return out

    return run, seen


@torch.no_grad()
def encode(
    blocks: Any,
    x: Tensor,
    setting: Setting,
    rotary: Sequence[Rotary] | None = None,
    real: Tensor | None = None,
) -> list[tuple[Tensor, list[int]]]:
    """Tokens ``(B, N, C)`` through all blocks, one sample at a time, merging after attention.

    A sample with padding is run without it, as if it were alone.

    Args:
        blocks: the host's blocks.
        x: what enters the first one.
        setting: the configuration.
        rotary: tables of every block, where the host has them.
        real: ``(B, N)``, False for padding.

    Returns:
        For each sample its tokens ``(M, C)`` and their original positions.
    """
    setting.lengths.clear()
    results = []
    for number, sample in enumerate(x):
        at = list(range(sample.shape[0]))
        if real is not None:
            at = [t for t in at if real[number, t]]
        y, size = sample[at], torch.ones(len(at))
        for index, block in enumerate(blocks):
            parts = Parts(block)
            table = None if rotary is None else rotary[index]
            attention, seen = recorded(parts, size, setting, table, at)
            y = parts.attention_branch(y, attention)
            metric = seen[0].key if setting.metric == "key" else seen[0].query
            y, size, kept = merge_step(y, size, metric, seen[0].value, setting, index)
            at = [at[t] for t in kept]
            y = parts.mlp_branch(y)
            if number == 0:
                setting.lengths.append(y.shape[0])
        results.append((y, at))
    return results
