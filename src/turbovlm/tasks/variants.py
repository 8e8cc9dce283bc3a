"""The models of a bench: one per setting, all sharing the weights of the first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import turbovlm
from turbovlm.config import Merge
from turbovlm.errors import ModelError, NothingToPatch
from turbovlm.tasks.base import Task
from turbovlm.tasks.rows import FUSED, UNMERGED


@dataclass(frozen=True)
class Setting:
    """What one row of the table runs."""

    name: str
    model: nn.Module
    config: Merge | None
    fused: bool
    baseline: str


def settings(rs: Sequence[int], methods: Sequence[Any], alpha: float | None = None) -> list[Merge]:
    """Every method with every r, in that order, without repetitions.

    Args:
        rs: tokens removed per block.
        methods: names, see `Merge`.
        alpha: of the methods that use it; None keeps the default.

    Raises:
        ConfigError: for a value that `Merge` refuses.
    """
    weight: dict[str, Any] = {} if alpha is None else {"alpha": alpha}
    merges = (Merge(r=r, method=m, **(weight if m == "turbo" else {})) for m in methods for r in rs)
    return list(dict.fromkeys(merges))


def build(model: nn.Module, merges: Sequence[Merge], *, fused: bool = False) -> list[Setting]:
    """The unmerged model, with ``fused`` the same with fused attention, then each merge.

    ``model`` itself stays untouched. All share its weights, so that a bench of twenty settings
    needs the memory of one model, and timed rounds can go from one to the next at once.

    Raises:
        ModelError: if ``fused`` is asked of a model whose attention is fused already.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    if fused:
        try:
            turbovlm.fuse_attention(share(model))
        except NothingToPatch as error:
            raise ModelError(
                "--fused is for models that transformers ships without fused attention (BLIP): "
                "leave it out, this model's attention is fused already"
            ) from error
    built = [Setting(UNMERGED, share(model), None, False, UNMERGED)]
    if fused:
        built.append(Setting(FUSED, _fuse(share(model)), None, True, UNMERGED))
    baseline = built[-1].name
    for merge in merges:
        twin = _fuse(share(model)) if fused else share(model)
        turbovlm.apply(twin, merge)
        built.append(Setting(f"{merge.method} r={merge.r}", twin, merge, fused, baseline))
    return built


def share(model: nn.Module) -> nn.Module:
    """A copy with modules of its own and the same parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})


def compile_all(task: Task[Any], built: Sequence[Setting]) -> None:
    """Compile the encoder of every setting as one graph, at its first call."""
    # Dynamo counts recompilations per line of code, and all settings run the same code.
    limit = 4 * (len(built) + 1)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for setting in built:
        task.encoder(setting.model).compile(fullgraph=True, dynamic=False)


def _fuse(model: nn.Module) -> nn.Module:
    return turbovlm.fuse_attention(model)
