"""The verbs: apply, remove, applied and recording, for every kind of configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import nn

from turbovlm.config import Setting
from turbovlm.errors import ConfigError, NotApplied, UnknownArchitecture
from turbovlm.notebook import html_table
from turbovlm.plug import stored
from turbovlm.plug.denoiser.state import Move
from turbovlm.plug.encoder.state import EncoderPatch
from turbovlm.plug.encoder.trace import BlockRecord, Trace
from turbovlm.plug.language.trace import VisualTrace
from turbovlm.plug.reducer import parts_of
from turbovlm.plug.state import Patch, Recorder
from turbovlm.plug.swap import install, patched, site_of, uninstall
from turbovlm.reducers import find_reducer, setting_of

Model = TypeVar("Model")
"""A torch module, or a pipeline of diffusers or transformers."""


class Run:
    """What was recorded of a patched model: the handle of `recording` and `applied`."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = recorders

    def records(self, kind: type[Any] | None = None) -> tuple[Any, ...]:
        """What the last forward of every patched part left, in order.

        Args:
            kind: only records of this class.

        Raises:
            NotApplied: if a part has not run since recording began, or none leaves such records.
        """
        found = [recorder.found() for recorder in self._recorders]
        wanted = found if kind is None else [r for r in found if isinstance(r, kind)]
        if not wanted and any(record is not None for record in found):
            raise NotApplied("this model records no such thing: run.records() returns all")
        if not wanted or any(record is None for record in wanted):
            raise NotApplied("nothing is recorded yet: run the model first")
        return tuple(wanted)

    def _repr_html_(self) -> str:
        """In a notebook: every record there is."""
        found = [r for recorder in self._recorders if (r := recorder.found()) is not None]
        return "".join(map(_record_html, found)) or html_table(
            "Run", ("record",), [("nothing yet: run the model first",)]
        )

    @property
    def trace(self) -> Trace:
        """What the last forward merged, in the model's first tower."""
        return self.traces[0]

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The same for every tower.

        Raises:
            NotApplied: if the model has not run since recording began, or has no encoder.
        """
        return self.records(Trace)

    @property
    def visual(self) -> VisualTrace:
        """Which visual tokens of the last prompt stayed, image by image.

        Raises:
            NotApplied: if no prompt with images has run since recording began, or the model's
                visual tokens are not reduced.
        """
        return self.records(VisualTrace)[0]

    @property
    def moves(self) -> tuple[Move, ...]:
        """What the last step of the denoising merged, module by module, in the first denoiser.

        Raises:
            NotApplied: if the denoiser has not run since recording began, or there is none.
        """
        return self.records(tuple)[0]


def apply(model: Model, *configs: Setting | None) -> Model:
    """Reduce the tokens of ``model``, in place; its own generate() and processors keep working.

    Args:
        model: a model that a host row describes, or one that contains such a part; a pipeline
            of diffusers or transformers, or a denoiser alone.
        *configs: what to do: `Merge` for encoders, `MergeRestore` for diffusion, `VisualTokens`
            for the prompt of a language model; several of them at once. None, or
            nothing, takes the settings that were saved with the model.

    Returns:
        The same model.

    Raises:
        UnknownArchitecture: no row describes any part of the model.
        NothingToPatch: its encoder has no block that can be split, its denoiser none to restore
            after.
        UnsuitableBlock: its blocks cannot be split (parallel branches, windows, a causal
            decoder), or the halves do not add up to the whole.
        UnseenAttention: its attention kernel hides the keys.
        AlreadyApplied: it is patched already, with another setting.
        ConfigError: the setting does not fit, or there is none.
        In every case the model is as it was.
    """
    target = _target(model)
    given = [config for config in configs if config is not None]
    settings = given or [setting_of(told) for told in stored.stored(target)]
    if not settings:
        raise ConfigError(
            "no setting is stored with this model: give one, e.g. Merge(r=16), or "
            "MergeRestore(ratio=0.3) for a denoiser"
        )
    reducers = [find_reducer(config) for config in settings]
    swaps = [
        swap
        for reducer, config in zip(reducers, settings, strict=True)
        for swap in reducer.plan(target, config)
    ]
    install(swaps)
    if isinstance(target, nn.Module):
        stored.store(target, settings)
    return model


def remove(model: Model) -> Model:
    """Take turbovlm out of ``model`` again; it computes bit for bit what it did before.

    Returns:
        The same model.

    Raises:
        NotApplied: if the model is not patched.
    """
    target = _target(model)
    parts = parts_of(target)
    found: list[Any] = [module for part in parts for module in patched(part)]
    owners = {owner for module in found for owner in site_of(module).patch.owners}
    if not isinstance(target, nn.Module) and site_of(target) is not None:
        owners.add(target)
    if not found and not owners:
        raise NotApplied("this model is not patched: there is nothing to remove")
    for module in (*found, *owners):
        uninstall(module)
    for part in parts:
        stored.forget(part)
    return model


@contextmanager
def recording(
    model: object, *, observe: Callable[[BlockRecord], object] | None = None
) -> Iterator[Run]:
    """Record what a patched model merges, for as long as the context is open.

    Args:
        model: patched.
        observe: called in every block of its encoders with what the block saw, so that nothing
            need be kept of a long sequence. Every block then runs in halves, which changes nothing
            but the time and the rounding. Of a tower that packs all images in one sequence each
            image is a sample, padded with tokens of size 0.

    Raises:
        NotApplied: if the model is not patched, or has no encoder to observe.
        UnsupportedInput: with ``observe``, by the forward of a compiled model.
    """
    patches: dict[int, Patch[Any, Any, Any]] = {
        id(site_of(module).patch): site_of(module).patch
        for part in parts_of(_target(model))
        for module in patched(part)
    }
    if not patches:
        raise NotApplied("this model is not patched: turbovlm.apply(model, ...) first")
    if observe is not None and not any(isinstance(p, EncoderPatch) for p in patches.values()):
        raise NotApplied("no encoder of this model is patched: observe needs turbovlm.Merge")
    with ExitStack() as stack:
        yield Run([stack.enter_context(Recorder(p, observe)) for p in patches.values()])


@contextmanager
def applied(model: object, *configs: Setting | None, record: bool = True) -> Iterator[Run]:
    """`apply` for the length of a ``with`` block; the handle holds what was merged.

    Args:
        model: as in `apply`.
        *configs: as in `apply`.
        record: whether to record. If not, nothing is kept of a forward.
    """
    apply(model, *configs)
    try:
        if not record:
            yield Run([])
            return
        with recording(model) as run:
            yield run
    finally:
        remove(model)


def _record_html(record: Any) -> str:
    """A record of any kind; that of a denoiser is a tuple of its modules."""
    if isinstance(record, tuple) and all(isinstance(move, Move) for move in record):
        rows = [
            (m.name, m.kind, m.tokens, 0 if m.fold is None else m.fold.plan.source.shape[1])
            for m in record
        ]
        heads = ("module", "kind", "tokens", "merged")
        return html_table("Moves", heads, rows, "of the last step of the denoising")
    own = getattr(record, "_repr_html_", None)
    return html_table(type(record).__name__, ("record",), [(record,)]) if own is None else own()


def _target(model: object) -> Any:
    """The model inside a pipeline of transformers; anything else as it is.

    Raises:
        UnknownArchitecture: if it holds no module.
    """
    inner = getattr(model, "model", None)
    if type(model).__module__.startswith("transformers.pipelines") and isinstance(inner, nn.Module):
        return inner
    if not parts_of(model):
        raise UnknownArchitecture(
            f"expected a torch model or a diffusers pipeline, got {type(model).__name__}"
        )
    return model
