"""The face: apply, remove, applied and recording over all host tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from turbovlm import hosts
from turbovlm.config import Merge, MergeRestore
from turbovlm.errors import AlreadyApplied, ConfigError, NotApplied, UnknownArchitecture
from turbovlm.plug import apply as encoders
from turbovlm.plug.generation import apply as generation
from turbovlm.plug.generation.state import Move
from turbovlm.plug.generation.state import Patch as DenoiserPatch
from turbovlm.plug.state import Patch
from turbovlm.plug.swap import uninstall
from turbovlm.plug.trace import Trace

Model = TypeVar("Model")
"""A torch module, or a pipeline of diffusers."""


@dataclass(frozen=True)
class Run:
    """Handle of a recorded application."""

    patches: tuple[Patch, ...]
    denoisers: tuple[DenoiserPatch, ...] = ()

    @property
    def trace(self) -> Trace:
        """What the last forward merged, in the model's first tower."""
        return self.traces[0]

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The same for every tower.

        Raises:
            NotApplied: if the model has not run since recording began, or is no encoder.
        """
        traces = tuple(p.trace for p in self.patches if p.trace is not None)
        return _recorded(traces, len(self.patches), "moves")

    @property
    def moves(self) -> tuple[Move, ...]:
        """What the last step of the denoising merged, module by module, in the first denoiser.

        Raises:
            NotApplied: if the denoiser has not run since recording began, or there is none.
        """
        moves = tuple(p.trace for p in self.denoisers if p.trace is not None)
        return _recorded(moves, len(self.denoisers), "trace")[0]


def apply(model: Model, config: Merge | MergeRestore | None = None) -> Model:
    """Make ``model`` merge tokens, in place; its own generate(), processors and pipelines go on.

    Args:
        model: a model that a host row describes, or one that contains such an encoder; a pipeline
            of diffusers or its denoiser alone.
        config: what to merge: `Merge` for encoders, `MergeRestore` for diffusion. None takes the
            setting that was saved with an encoder.

    Returns:
        The same model.

    Raises:
        UnknownArchitecture: no row describes any part of the model.
        NothingToPatch: its encoder has no block that can be split, its denoiser none to restore
            after.
        UnsuitableBlock: its blocks cannot be split (parallel branches, windows, a causal
            decoder), or the halves do not add up to the whole.
        UnseenAttention: its attention kernel hides the keys.
        AlreadyApplied: it is patched already.
        ConfigError: the setting does not fit, or there is none.
        In every case the model is as it was.
    """
    if not isinstance(model, nn.Module) and not generation.components(model):
        raise UnknownArchitecture(
            f"expected a torch model or a diffusers pipeline, got {type(model).__name__}"
        )
    if _is_patched(model):
        raise AlreadyApplied("this model is patched already: turbovlm.remove(model) first")
    if isinstance(config, MergeRestore):
        generation.apply_rows(model, config, hosts.denoisers())
        return model
    if generation.denoisers(model, hosts.denoisers()):
        raise ConfigError(
            "a denoiser needs its pixels back: turbovlm.apply(pipe, "
            "turbovlm.MergeRestore(ratio=0.3))"
        )
    if not isinstance(model, nn.Module):
        raise UnknownArchitecture(
            f"turbovlm.Merge is for encoders: give it a model, not a {type(model).__name__}"
        )
    config = encoders.stored_config(model) if config is None else config
    if not isinstance(config, Merge):
        raise ConfigError(f"expected turbovlm.Merge(...), got {type(config).__name__}")
    encoders.apply_rows(model, config, hosts.rows(), hosts.REFUSALS)
    return model


def remove(model: Model) -> Model:
    """Take turbovlm out of ``model`` again; it computes bit for bit what it did before.

    Returns:
        The same model.

    Raises:
        NotApplied: if the model is not patched.
    """
    if not _is_patched(model):
        raise NotApplied("this model is not patched: there is nothing to remove")
    for module in list(generation.patched(model)):
        uninstall(module)
    if isinstance(model, nn.Module):
        encoders.remove_rows(model)
    return model


@contextmanager
def recording(model: object) -> Iterator[Run]:
    """Record what a patched model merges, for as long as the context is open.

    Raises:
        NotApplied: if the model is not patched.
    """
    if not _is_patched(model):
        raise NotApplied("this model is not patched: turbovlm.apply(model, ...) first")
    towers = encoders.patches_of(model) if isinstance(model, nn.Module) else ()
    run = Run(towers, generation.patches_of(model))
    patches: list[Any] = [*run.patches, *run.denoisers]
    for patch in patches:
        patch.recording, patch.trace = True, None
    try:
        yield run
    finally:
        for patch in patches:
            patch.recording = False


@contextmanager
def applied(model: object, config: Merge | MergeRestore | None = None) -> Iterator[Run]:
    """`apply` for the length of a ``with`` block; the handle tells what was merged."""
    apply(model, config)
    try:
        with recording(model) as run:
            yield run
    finally:
        remove(model)


def _is_patched(model: object) -> bool:
    if any(True for _ in generation.patched(model)):
        return True
    return isinstance(model, nn.Module) and bool(encoders.patches_of(model))


Recorded = TypeVar("Recorded")


def _recorded(found: tuple[Recorded, ...], expected: int, other: str) -> tuple[Recorded, ...]:
    if not expected:
        raise NotApplied(f"this model records no such thing: read run.{other}")
    if len(found) < expected:
        raise NotApplied("nothing is recorded yet: run the model first")
    return found
