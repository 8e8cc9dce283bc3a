"""The models of a bench: one per setting, all sharing the weights of the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import turbovlm
from turbovlm.config import Merge
from turbovlm.errors import ConfigError, ModelError, NothingToPatch
from turbovlm.maths.score import find_score
from turbovlm_workbench.compare.rows import FUSED
from turbovlm_workbench.compare.titles import title_of
from turbovlm_workbench.draws import draws_of
from turbovlm_workbench.load.loaded import UNMERGED
from turbovlm_workbench.load.share import share_weights
from turbovlm_workbench.settings import Settings
from turbovlm_workbench.tasks.image import ImageTask


@dataclass(frozen=True)
class BenchSetting:
    """What one row of the table runs."""

    name: str
    model: nn.Module
    settings: Settings
    fused: bool
    baseline: str
    more: tuple[nn.Module, ...] = ()
    """The further draws of a method that has a seed: quality is the mean over all."""


def merge_settings(
    rs: Sequence[int],
    methods: Sequence[Any],
    alphas: Sequence[float | None] = (None,),
    inflections: Sequence[float] = (0.0,),
    *,
    speedups: Sequence[float] = (),
    collapse: bool = False,
) -> list[Merge]:
    """Every combination, in the order of the arguments' last first, without repetitions.

    Args:
        rs: tokens removed per block.
        methods: names, see `Merge`.
        alphas: of the methods that use it; None keeps the default.
        inflections: shapes of the schedule, see `Merge`.
        speedups: amounts beside ``rs``, see `Merge`.
        collapse: of all of them, see `Merge`.

    Raises:
        ConfigError: for a value that `Merge` refuses, or shapes of what has none.
    """
    if speedups and any(inflections):
        raise ConfigError(
            "--inflection shapes a constant r, and --speedup chooses blocks and amounts itself: "
            "leave one of the two out"
        )
    amounts: list[dict[str, Any]] = [{"r": r} for r in rs]
    amounts += [{"speedup": speedup} for speedup in speedups]
    merges = (
        Merge(
            **amount,
            method=method,
            alpha=alpha if "alpha" in find_score(method).options else None,
            inflection=shape,
            collapse=collapse,
        )
        for method in methods
        for alpha in alphas
        for shape in inflections
        for amount in amounts
    )
    return list(dict.fromkeys(merges))


def build_settings(
    model: nn.Module, variants: Sequence[Settings], *, fused: bool = False
) -> list[BenchSetting]:
    """The unmerged model, with ``fused`` the same with fused attention, then each variant.

    ``model`` itself stays untouched. All share its weights, so that a bench of twenty settings
    needs the memory of one model, and timed rounds can go from one to the next at once.

    Raises:
        ModelError: if ``fused`` is asked of a model whose attention is fused already.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    if fused:
        try:
            turbovlm.fuse_attention(share_weights(model))
        except NothingToPatch as error:
            raise ModelError(
                "--fused is for models that transformers ships without fused attention (BLIP): "
                "leave it out, this model's attention is fused already"
            ) from error
    built = [BenchSetting(UNMERGED, plain_twin(model, fused=False), (), False, UNMERGED)]
    if fused:
        built.append(BenchSetting(FUSED, plain_twin(model, fused=True), (), True, UNMERGED))
    baseline = built[-1].name
    for settings in variants:
        twins = []
        for draw in draws_of(settings):
            twins.append(turbovlm.apply(plain_twin(model, fused=fused), *draw))
        first, *more = twins
        name = title_of(settings)
        built.append(BenchSetting(name, first, settings, fused, baseline, tuple(more)))
    return built


def same_operations(settings: Settings) -> Settings:
    """Settings of the same operations: the value of alpha changes who is merged, not how many.

    An alpha of 0 is a setting of its own, as it saves the guide's row.
    """
    return tuple(
        replace(setting, alpha=None) if isinstance(setting, Merge) and setting.alpha else setting
        for setting in settings
    )


def plain_twin(model: nn.Module, *, fused: bool) -> nn.Module:
    """The unmerged model with modules of its own, with fused attention where that is asked for."""
    twin = share_weights(model)
    return turbovlm.fuse_attention(twin) if fused else twin


def compile_all(task: ImageTask[Any], models: Sequence[nn.Module]) -> None:
    """Compile the encoder of every model as one graph, at its first call."""
    for model in models:
        task.encoder(model).compile(fullgraph=True, dynamic=False)


@contextmanager
def many_compilations(built: Sequence[BenchSetting]) -> Iterator[None]:
    """Room for one compilation of every setting: the compiler counts them per line of code, and
    all settings run the same code. Its limit is put back."""
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(before, 4 * (len(built) + 1))
    try:
        yield
    finally:
        torch._dynamo.config.recompile_limit = before
