"""The limit of a setting: the same model with tokens dropped where ours merges, and no merge.

A block that merges computes its attention on more tokens than its MLP. Here the block runs whole,
as its library wrote it, on so many tokens that its multiply-adds are the same: no launch is added
to those of the host but one copy a block that drops some.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm import hosts
from turbovlm.maths.speedup import BlockCost
from turbovlm.plug.encoder.find import Tower, survey
from turbovlm.plug.encoder.state import TowerFacts
from turbovlm.plug.encoder.trace import Trace
from turbovlm.plug.names import bind
from turbovlm.plug.swap import parameters_of, site_of


def dropping(plain: nn.Module, merged: nn.Module, trace: Trace) -> nn.Module | None:
    """Let ``plain`` drop as many tokens as ``merged`` merges, with hooks on its blocks.

    Args:
        plain: an unmerged model; it is changed.
        merged: the same with a merge, of which ``trace`` was recorded.
        trace: of its only encoder that merges.

    Returns:
        ``plain``; None where images share a sequence, or several encoders merge.
    """
    towers = survey(plain, hosts.rows(), hosts.REFUSALS).patched
    if len(towers) != 1 or towers[0].row.packed is not None:
        return None
    tower = towers[0]
    facts: TowerFacts = site_of(merged.get_submodule(tower.name)).patch.facts
    before, length = trace.start, trace.start
    for block, after in zip(tower.blocks, trace.tokens, strict=True):
        keep = equal_length(facts.cost, before, after)
        if keep < length:
            hook = _first(tower, block, keep, trace.start)
            block.register_forward_pre_hook(hook, with_kwargs=True)
        before, length = after, min(keep, length)
    if facts.last and length < trace.start:
        _restore(tower, trace.start)
    return plain


def equal_length(cost: BlockCost, before: int, after: int) -> int:
    """For how many tokens a whole block costs what one costs that gets ``before`` of them and
    leaves ``after`` between its attention and its MLP."""
    linear, square, whole = cost.attention + cost.mlp, 2 * cost.width, cost.of(before, after)
    if not square:
        return round(whole / linear)
    return round((math.sqrt(linear**2 + 4 * square * whole) - linear) / (2 * square))


def _first(tower: Tower, block: nn.Module, keep: int, start: int) -> Callable[..., Any]:
    """A hook that hands the first ``keep`` of ``start`` tokens to the block, and their tables."""
    names = parameters_of(type(block).forward)

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = bind(names, args, kwargs)
        given[names[0]] = given[names[0]][:, :keep].contiguous()
        for name in given.keys() & set(tower.row.follow):
            given[name] = _rows(given[name], start - keep)
        return (), given

    return hook


def _rows(table: Any, dropped: int) -> Any:
    """A table along the tokens, with or without the prefix, less its last rows."""
    if isinstance(table, tuple | list):
        return type(table)(_rows(part, dropped) for part in table)
    return table[..., :-dropped, :].contiguous() if isinstance(table, Tensor) else table


def _restore(tower: Tower, length: int) -> None:
    """Give every position a token after the last block, as merging does where all are read."""

    def hook(_: nn.Module, inputs: object, output: Tensor) -> Tensor:
        place = torch.arange(length, device=output.device).clamp(max=output.shape[1] - 1)
        return output[:, place]

    tower.blocks[-1].register_forward_hook(hook)
