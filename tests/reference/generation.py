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
    restore: str = "linear"
    proportional: bool = True
    metric: str = "sketch"  # of tokens so narrow that it is the tokens themselves
    modules: tuple[str, ...] = ("self", "cross", "feed_forward")


@dataclass
class Groups:
    """Who goes where: ``gone[i]`` is the list of (destination, weight) that i is restored from.

    ``points`` ``(N, d)`` is where the tokens stand, for the linear restore.
    """

    gone: dict[int, list[tuple[int, float]]]
    tokens: int
    points: Tensor

    @property
    def alive(self) -> list[int]:
        """The survivors in order."""
        return [t for t in range(self.tokens) if t not in self.gone]

    def members(self, t: int) -> list[int]:
        """The survivor t and those that it took in."""
        return [t] + [i for i, goals in self.gone.items() if goals[0][0] == t]

    def merge(self, x: Tensor) -> Tensor:
        """One sample ``(N, C)``: the mean of every group, in the order of the survivors."""
        return torch.stack([x[self.members(t)].mean(0) for t in self.alive])

    def sizes(self) -> list[int]:
        """Of the groups."""
        return [len(self.members(t)) for t in self.alive]

    def restore(self, y: Tensor) -> Tensor:
        """``(N - r, C)`` to ``(N, C)``."""
        place = {t: k for k, t in enumerate(self.alive)}
        rows = []
        for t in range(self.tokens):
            goals = self.gone.get(t, [(t, 1.0)])
            rows.append(sum(w * y[place[d]] for d, w in goals))
        return torch.stack(rows)  # type: ignore[arg-type]

    def slope(self, y: Tensor) -> Tensor:
        """Ridge regression of the survivors' outputs on where they stand, along every step."""
        stand = self.merge(self.points)
        known = stand - stand.mean(0)
        survivors, width = known.shape
        weight = 0.1 * known.square().sum(0).mean() + 1e-6 * survivors / width
        ridge = weight * torch.eye(width, dtype=y.dtype)
        fitted = torch.linalg.inv(known.T @ known + ridge) @ known.T @ (y - y.mean(0))
        return (self.points - self.restore(stand)) @ fitted


def groups(
    metric: Tensor,
    value: Tensor,
    grid: tuple[int, int],
    setting: Setting,
    share: float = 1.0,
) -> Groups:
    """One sample: metric ``(N, d)``, value ``(N,)``, the share of the weight that it has."""
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
    alpha = share * typical * n / 30 if setting.alpha is None else setting.alpha
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
        if setting.restore != "weighted":
            gone[i] = [(near[0][1], 1.0)]
        else:
            powers = [math.exp(cosine / 0.1) for cosine, _ in near]
            gone[i] = [(j, p / sum(powers)) for (_, j), p in zip(near, powers, strict=True)]
    return Groups(gone, n, torch.stack(unit))


def attend(attention: Any, x: Tensor, seen: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Attention of one sample: x ``(N, C)`` reads ``seen`` ``(M, D)``, each as often as told."""
    heads = attention.heads
    q, k, v = attention.to_q(x), attention.to_k(seen), attention.to_v(seen)
    d = q.shape[-1] // heads
    out = []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        logits = q[:, part] @ k[:, part].T / math.sqrt(d)
        if sizes is not None:
            logits = logits + torch.tensor([math.log(size) for size in sizes], dtype=x.dtype)
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
    whole = setting.plan == "block"

    def plans(inside: Tensor, of_cross: bool = False) -> list[Groups]:
        """One for each sample, measured by the module that reads ``inside``."""
        seen = (inside, x, text)
        moved = (x[batch // 2 :] - x[: batch // 2]).repeat(2, 1, 1) if paired and whole else x
        if paired:
            seen = tuple(t.mean(0, keepdim=True).expand_as(t) for t in seen)
        samples: Any = zip(*seen, moved, strict=True)
        guided = paired and whole
        return [_plan(host, s, grid, setting, of_cross, guided) for s in samples]

    def around(group: Groups, kind: str, z: Tensor, f: Any) -> Tensor:
        if kind not in setting.modules:
            return f(z)
        y = f(group.merge(z))
        back = group.restore(y)
        if kind == "feed_forward" and setting.restore == "linear":
            back = back + group.slope(y)
        return back

    y = x.clone()
    first = host.norm1(x)
    shared = plans(first)
    for b in range(batch):
        merges = setting.proportional and "self" in setting.modules
        sizes = shared[b].sizes() if merges else None
        y[b] += around(shared[b], "self", first[b], lambda z, s=sizes: attend(host.attn1, z, z, s))
    second = host.norm2(y)
    if whole and "self" not in setting.modules:  # nobody has measured before
        shared = plans(second)
    across = shared if whole else plans(second, of_cross=True)
    for b in range(batch):
        y[b] += around(across[b], "cross", second[b], lambda z, b=b: attend(host.attn2, z, text[b]))
    third = host.norm3(y)
    if not whole and "self" not in setting.modules:
        shared = plans(third)
    for b in range(batch):
        y[b] += around(shared[b], "feed_forward", third[b], host.ff)
    return y


def _plan(
    host: Any,
    sample: tuple[Tensor, Tensor, Tensor, Tensor],
    grid: tuple[int, int],
    setting: Setting,
    of_cross: bool,
    guided: bool,
) -> Groups:
    """One sample: what the module reads, what enters the block, the prompt, and what it moved.

    That is the difference of the halves of guidance ``(N, C)``, where it is the value.
    """
    x, raw, text, moved = sample
    heads, first, second = host.attn1.heads, host.attn1, host.attn2
    metric = raw
    if setting.metric == "key":
        metric = head_mean(second.to_q(x) if of_cross else first.to_k(x), heads)
    if guided:
        lengths = torch.stack([row.square().sum().sqrt() for row in moved])
        return groups(metric, lengths / max(float(lengths.sum()), 1e-30), grid, setting)
    value = guide_row(first.to_q(x).mean(0), first.to_k(x), heads)
    if of_cross:
        value = guide_row(second.to_k(text).mean(0), second.to_q(x), heads)
    return groups(metric, value, grid, setting, 0.1)
