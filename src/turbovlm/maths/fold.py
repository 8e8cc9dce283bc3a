"""What a plan of generation does to tokens: merge before a module, restore after it (Eq. 14)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from turbovlm.maths.match import Match, Rule, match
from turbovlm.maths.merge import size_bias, take
from turbovlm.maths.plan import Plan
from turbovlm.maths.precision import full_precision
from turbovlm.maths.ridge import ridge_inverse
from turbovlm.maths.score import COPY
from turbovlm.maths.sets import Sets
from turbovlm.maths.sketch import sketch

RIDGE = 0.1
"""Of the fit of `Slope`, as a share of the mean variance of the directions."""

TEMPERATURE = 0.1
"""Of the softmax over cosines in the weighted restore; the paper names none."""


@dataclass(frozen=True)
class Slope:
    """The first-order term of restoring: how a module's output follows its input.

    A copy gives every member of a group the output of the group's mean. What is missing is about
    linear in how far the member stands from that mean, and the survivors, whose inputs and
    outputs are both known, tell the slope: ridge regression of their outputs on their sketch.

    Attributes:
        step: ``(B, N, d)`` from the survivor that stands for a position to the position.
        centred: ``(B, N - r, d)`` where the survivors stand, less their mean, times
            ``(N - r)^-1/2``: half precision can hold what is summed over them.
        inverse: ``(B, d, d)`` of their covariance and the ridge, times the same.
    """

    step: Tensor
    centred: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, fold: Fold, points: Tensor) -> Slope:
        """From where the tokens stand, ``(B, N, d)``, in fp32 or wider."""
        with full_precision(points):
            kept = fold.merge(points)
            scale = kept.shape[1] ** -0.5
            centred = (kept - kept.mean(1, keepdim=True)) * scale
            covariance = centred.transpose(1, 2) @ centred
            spread = covariance.diagonal(dim1=1, dim2=2)
            floor = COPY / kept.shape[2]  # tokens that differ by rounding alone
            ridge = RIDGE * spread.mean(1, keepdim=True) + floor
            inverse = ridge_inverse(covariance, ridge, RIDGE) * scale
            return cls(points - fold.copy(kept), centred, inverse)

    def repeat(self, copies: int) -> Slope:
        """The same for a batch that is repeated ``copies`` times."""
        return Slope(*(_copies(x, copies) for x in (self.step, self.centred, self.inverse)))

    def add(self, whole: Tensor, y: Tensor) -> Tensor:
        """``(B, N, C)`` with the term added, from the survivors' outputs ``(B, N - r, C)``."""
        # the mean of y drops out: the directions are centred
        together = self.centred.to(y.dtype).transpose(1, 2) @ y
        slope = self.inverse @ together.to(self.inverse.dtype)
        return torch.baddbmm(whole, self.step.to(y.dtype), slope.to(y.dtype))


def _copies(x: Tensor, copies: int) -> Tensor:
    """A batch ``(B, ...)`` again and again; of one sample without a copy."""
    return x.expand(copies, -1, -1) if x.shape[0] == 1 else x.repeat(copies, 1, 1)


@dataclass(frozen=True)
class Fold:
    """A plan with what merging and restoring need of it, computed once for several modules.

    Attributes:
        plan: what is merged.
        owner: ``(B, N)`` who stands for each position among the survivors.
        rows: ``(B N,)`` the same as rows of the flattened survivors.
        order: ``(B N,)`` rows of the flattened batch, group by group.
        start: ``(B (N - r),)`` where each group starts in ``order``.
        size: ``(B, N - r)`` int64 tokens in each group.
        part: ``(B N,)`` fp32 what each row in ``order`` is of its group: 1 / size.
        second: ``(B, r)`` the runner-up of each source among the survivors, weighted restore only.
        share: ``(B, r, 1)`` what of a source's value comes from the runner-up.
        slope: the first-order term, linear restore only.
    """

    plan: Plan
    owner: Tensor
    rows: Tensor
    order: Tensor
    start: Tensor
    size: Tensor
    part: Tensor
    second: Tensor | None = None
    share: Tensor | None = None
    slope: Slope | None = None

    @classmethod
    def of(cls, found: Match) -> Fold:
        """What follows from a match; one sort of ``B N`` integers, and static shapes.

        With a runner-up restoring is weighted: the second best destination gives the share that
        a softmax over the two cosines gives it.
        """
        plan = found.plan
        batch, kept = plan.keep.shape
        rank = found.rank - 1
        owner = rank.scatter(1, plan.source, plan.slot)
        first = torch.arange(batch, device=owner.device).unsqueeze(1) * kept
        rows = (owner + first).flatten()
        count = torch.zeros(batch * kept, dtype=torch.int64, device=owner.device)
        count = count.scatter_add(0, rows, torch.ones_like(rows))
        start = count.cumsum(0) - count
        group, order = rows.sort(stable=True)
        part = count.reciprocal()[group]
        second = share = None
        if found.second is not None and found.similar is not None:
            second = rank.gather(1, found.second)
            share = (found.similar / TEMPERATURE).softmax(-1)[..., 1:]
        return cls(plan, owner, rows, order, start, count.view(batch, kept), part, second, share)

    def repeat(self, copies: int) -> Fold:
        """The same for a batch that is repeated ``copies`` times, a slope included."""
        if copies == 1:
            return self
        plan = self.plan
        source, destination, keep, slot = (
            rows.repeat(copies, 1) for rows in (plan.source, plan.destination, plan.keep, plan.slot)
        )
        copy = torch.arange(copies, device=keep.device).unsqueeze(1)
        first = copy * self.order.shape[0]
        return Fold(
            Plan(source, destination, keep, slot, plan.tokens),
            self.owner.repeat(copies, 1),
            (self.rows + copy * self.start.shape[0]).flatten(),
            (self.order + first).flatten(),
            (self.start + first).flatten(),
            self.size.repeat(copies, 1),
            self.part.repeat(copies),
            None if self.second is None else self.second.repeat(copies, 1),
            None if self.share is None else self.share.repeat(copies, 1, 1),
            None if self.slope is None else self.slope.repeat(copies),
        )

    @property
    def bias(self) -> Tensor:
        """Proportional attention (supplementary Eq. 2): ``log size`` ``(B, N - r)`` fp32."""
        return size_bias(self.size.float())

    def merge(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` -> ``(B, N - r, C)``: the mean of every group.

        A bag of embeddings is just that, and reads every row once: three times as fast as
        gathering the survivors and adding the sources to them. With weights it is two to three
        times as fast as with ``mode="mean"``, which counts the bags anew.
        """
        batch, kept = self.plan.keep.shape
        rows = x.reshape(-1, x.shape[-1])
        parts = self.part.to(x.dtype)
        bags = F.embedding_bag(self.order, rows, self.start, mode="sum", per_sample_weights=parts)
        return bags.view(batch, kept, -1)

    def copy(self, y: Tensor) -> Tensor:
        """``(B, N - r, C)`` -> ``(B, N, C)``: every position gets what stands for it."""
        batch, tokens = self.owner.shape
        rows = y.reshape(-1, y.shape[-1]).index_select(0, self.rows)
        return rows.view(batch, tokens, -1)

    def restore(self, y: Tensor, pointwise: bool = False) -> Tensor:
        """``(B, N - r, C)`` -> ``(B, N, C)``: every merged position gets a value back.

        Args:
            y: what the module made of the survivors.
            pointwise: whether it looks at each token alone, so that a slope says something.
        """
        whole = self.copy(y)
        if self.slope is not None:
            return self.slope.add(whole, y) if pointwise else whole
        if self.second is None or self.share is None:
            return whole
        first, second = take(y, self.plan.slot), take(y, self.second)
        mixed = first + (second - first) * self.share.to(y.dtype)
        place = self.plan.source.unsqueeze(-1).expand_as(mixed)
        return whole.scatter(1, place, mixed)


def fold_tokens(
    unit: Tensor,
    value: Tensor | None,
    r: int,
    sets: Sets,
    rule: Rule,
    restore: Literal["linear", "copy", "weighted"] = "copy",
) -> Fold:
    """Match once and work out what merging and restoring need.

    Args:
        unit: ``(B, N, d)`` what similarity is measured on, see `match.unit_rows`.
        value: semantic value A ``(B, N)``, or None where the score does not read it.
        r: tokens to merge.
        sets: source and destination sets.
        rule: the score, and where it is asked.
        restore: a merged token gets back the ``"copy"`` of its destination, the ``"weighted"``
            mean of its two best ones, or after feed-forward the copy and a ``"linear"`` term.
    """
    found = match(unit, value, r, sets, replace(rule, runner_up=restore == "weighted"))
    fold = Fold.of(found)
    return replace(fold, slope=Slope.of(fold, sketch(unit))) if restore == "linear" else fold
