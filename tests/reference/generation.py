"""The oracle of generation: one transformer block with merge and restore, written out with loops.

From the block's weights alone; shares no code with turbovlm. Destinations are the first token of
every cell, or the odd positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Setting:
    """What the oracle needs to know of a configuration, as plain values."""

    ratio: float
    alpha: float | None = None
    method: str = "turbo"
    destinations: str = "grid"
    cell: tuple[int, int] = (2, 2)
    plan: str = "block"
    restore: str = "copy"
    metric: str = "sketch"  # of tokens so narrow that it is the tokens themselves
    modules: tuple[str, ...] = ("self", "cross", "feed_forward")


@dataclass
class Groups:
    """Who goes where: ``gone[i]`` is the list of (destination, weight) that i is restored from."""

    gone: dict[int, list[tuple[int, float]]]
    tokens: int

    def merge(self, x: Tensor) -> Tensor:
        """One sample ``(N, C)``: the mean of every group, in the order of the survivors."""
        rows = []
        for t in range(self.tokens):
            if t not in self.gone:
                group = [t] + [i for i, goals in self.gone.items() if goals[0][0] == t]
                rows.append(sum(x[g] for g in group) / len(group))  # type: ignore[operator]
        return torch.stack(rows)

    def restore(self, y: Tensor) -> Tensor:
        """``(N - r, C)`` to ``(N, C)``."""
        alive = [t for t in range(self.tokens) if t not in self.gone]
        place = {t: k for k, t in enumerate(alive)}
        rows = []
        for t in range(self.tokens):
            goals = self.gone.get(t, [(t, 1.0)])
            rows.append(sum(w * y[place[d]] for d, w in goals))
        return torch.stack(rows)  # type: ignore[arg-type]


def groups(metric: Tensor, value: Tensor, grid: tuple[int, int], setting: Setting) -> Groups:
    """One sample: metric ``(N, d)``, value ``(N,)``."""
    height, width = grid
    n = height * width
    if setting.destinations == "bipartite":
        takers = [t for t in range(n) if t % 2 == 1]
    else:
        down, across = setting.cell
        takers = [
            row * width + column
            for row in range(0, height - height % down, down)
            for column in range(0, width - width % across, across)
        ]
    unit = [row / row.norm() for row in metric]
    found = []
    for i in range(n):
        if i in takers:
            continue
        cosines = sorted(((float(unit[i] @ unit[j]), j) for j in takers), reverse=True)
        found.append((i, cosines[:2]))
    logs = [math.log(max(1 - near[0][0], 1e-6)) for _, near in found]
    typical = math.exp(sum(logs) / len(logs))
    alpha = 0.2 * typical * n / 30 if setting.alpha is None else setting.alpha
    scored = []
    for i, near in found:
        best = near[0][0]
        degree = {
            "redundancy": best,
            "semantics": -float(value[i]),
            "turbo": best - alpha * 30 * float(value[i]),
        }[setting.method]
        scored.append((degree, i, near))
    scored.sort(reverse=True)
    gone: dict[int, list[tuple[int, float]]] = {}
    for _, i, near in scored[: int(n * setting.ratio)]:
        if setting.restore == "copy":
            gone[i] = [(near[0][1], 1.0)]
        else:
            powers = [math.exp(cosine / 0.1) for cosine, _ in near]
            gone[i] = [(j, p / sum(powers)) for (_, j), p in zip(near, powers, strict=True)]
    return Groups(gone, n)


def attend(attention: Any, x: Tensor, seen: Tensor) -> Tensor:
    """Attention of one sample: x ``(N, C)`` reads ``seen`` ``(M, D)``."""
    heads = attention.heads
    q, k, v = attention.to_q(x), attention.to_k(seen), attention.to_v(seen)
    d = q.shape[-1] // heads
    out = []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        logits = q[:, part] @ k[:, part].T / math.sqrt(d)
        out.append(torch.softmax(logits, -1) @ v[:, part])
    return attention.to_out[0](torch.cat(out, -1))


def guide_row(asked: Tensor, seen: Tensor, heads: int) -> Tensor:
    """Eq. 8 for one query ``(C,)``: its softmax over ``seen`` ``(N, C)``, averaged over heads."""
    d = asked.shape[0] // heads
    rows = []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        rows.append(torch.softmax(seen[:, part] @ asked[part] / math.sqrt(d), 0))
    return torch.stack(rows).mean(0)


def head_mean(x: Tensor, heads: int) -> Tensor:
    """``(N, C)`` -> ``(N, C / heads)``."""
    d = x.shape[1] // heads
    return torch.stack([x[:, h * d : (h + 1) * d] for h in range(heads)]).mean(0)


def block(
    host: Any, x: Tensor, text: Tensor, grid: tuple[int, int], setting: Setting, paired: bool
) -> Tensor:
    """A `BasicTransformerBlock` with plain layer norms, ``(B, N, C)`` and ``(B, T, D)``.

    With ``paired`` all samples share one plan, measured on their mean.
    """
    batch = x.shape[0]
    first = host.norm1(x)
    plans = _plans(_visual, host, first, x, text, grid, setting, paired)
    y = x.clone()
    for b in range(batch):
        y[b] += _around(plans[b], "self", setting, first[b], lambda z: attend(host.attn1, z, z))
    second = host.norm2(y)
    across = plans
    if setting.plan == "module":
        across = _plans(_textual, host, second, x, text, grid, setting, paired)
    for b in range(batch):
        y[b] += _around(
            across[b], "cross", setting, second[b], lambda z, b=b: attend(host.attn2, z, text[b])
        )
    third = host.norm3(y)
    if setting.plan == "module" and "self" not in setting.modules:  # nobody has measured before
        plans = _plans(_visual, host, third, x, text, grid, setting, paired)
    for b in range(batch):
        y[b] += _around(plans[b], "feed_forward", setting, third[b], host.ff)
    return y


def _plans(
    measure: Any,
    host: Any,
    x: Tensor,
    raw: Tensor,
    text: Tensor,
    grid: tuple[int, int],
    setting: Setting,
    paired: bool,
) -> list[Groups]:
    """One plan for each sample; ``x`` is what the module reads, ``raw`` what enters the block."""
    if paired:
        x, raw, text = (t.mean(0, keepdim=True).expand_as(t) for t in (x, raw, text))
    measured = [measure(host, x[b], raw[b], text[b], setting) for b in range(len(x))]
    return [groups(metric, value, grid, setting) for metric, value in measured]


def _around(plan: Groups, kind: str, setting: Setting, x: Tensor, f: Any) -> Tensor:
    return plan.restore(f(plan.merge(x))) if kind in setting.modules else f(x)


def _visual(
    host: Any, x: Tensor, raw: Tensor, _: Tensor, setting: Setting
) -> tuple[Tensor, Tensor]:
    attention = host.attn1
    keys = attention.to_k(x)
    metric = head_mean(keys, attention.heads) if setting.metric == "key" else raw
    return metric, guide_row(attention.to_q(x).mean(0), keys, attention.heads)


def _textual(
    host: Any, x: Tensor, raw: Tensor, text: Tensor, setting: Setting
) -> tuple[Tensor, Tensor]:
    attention = host.attn2
    queries = attention.to_q(x)
    metric = head_mean(queries, attention.heads) if setting.metric == "key" else raw
    return metric, guide_row(attention.to_k(text).mean(0), queries, attention.heads)
