"""From unit keys and the guide's logits to a plan, with two kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from turbovlm.kernels import ops
from turbovlm.maths.match import Padding, Rule, match
from turbovlm.maths.plan import Plan
from turbovlm.maths.score import Context, semantic_value
from turbovlm.maths.sets import EvenOdd


def choose_tokens(
    unit: Tensor,
    logits: Tensor | None,
    r: int,
    sets: EvenOdd,
    rule: Rule,
    padding: Padding | None = None,
) -> Plan:
    """What `turbovlm.maths.match.match` plans, from what `turbovlm.kernels.look` saw.

    Scores other than ``turbo`` are computed by their own torch function; pairs and plan are the
    kernels'. The sources of the plan stand in ascending order, not in that of their degree.

    Args:
        unit: ``(B, N, d)`` fp32, what similarity is measured on.
        logits: ``(B, H, N)`` fp32 of the guide, bias included; None where the score reads no A.
        r: tokens to remove, at most S.
        sets: the even and odd positions.
        rule: the score, and where it is asked.
        padding: of the batch, whose real tokens all come first.
    """
    if rule.released_order or rule.score.random_pairs:
        value = None if logits is None else semantic_value(logits)
        return match(unit, value, r, sets, rule, padding).plan
    count = None if padding is None else padding.count
    pair = None if padding is None else (padding.count, padding.removed)
    amounts = (r, sets.tokens, sets.prefix)
    redundancy, partner = ops.best_destinations(unit, sets.prefix, count)
    fused = rule.score.name == "turbo" and logits is not None and rule.reads_value
    if fused and not isinstance(rule.share, Tensor):
        weight = rule.alpha, rule.share
        return ops.make_plan(redundancy, partner, logits, amounts, weight, pair)
    real = None
    if count is not None:
        real = sets.sources(torch.arange(sets.tokens, device=count.device) < count)
    tokens = sets.tokens if count is None else count
    value = None
    if logits is not None and rule.reads_value:
        value = sets.sources(semantic_value(logits))
    context = Context(tokens, rule.block, rule.alpha, rule.seed, rule.share, real)
    degree = rule.score.function(redundancy, value, context)
    if real is not None:
        degree = degree.masked_fill(~real | (redundancy == -torch.inf), -torch.inf)
    return ops.make_plan(degree, partner, None, amounts, padding=pair)
