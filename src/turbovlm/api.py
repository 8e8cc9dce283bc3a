"""The face: apply, remove and applied over all host tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from turbovlm import hosts
from turbovlm.config import Merge
from turbovlm.plug.apply import Run, apply_rows, recording, remove

Model = TypeVar("Model", bound=nn.Module)


def apply(model: Model, config: Merge | None = None) -> Model:
    """Make ``model`` merge tokens, in place; its own generate(), processors and pipelines go on.

    Args:
        model: a model that a host row describes, or one that contains such an encoder.
        config: what to merge; None takes the setting that was saved with the model.

    Returns:
        The same model.

    Raises:
        UnknownArchitecture: no row describes any part of the model.
        NothingToPatch: its encoder has no block that can be split.
        UnsuitableBlock: its blocks cannot be split (parallel branches, windows, a causal
            decoder), or the halves do not add up to the whole.
        UnseenAttention: its attention kernel hides the keys.
        AlreadyApplied: it is patched already.
        ConfigError: the setting does not fit, or there is none.
        In every case the model is as it was.
    """
    apply_rows(model, config, hosts.rows(), hosts.REFUSALS)
    return model


@contextmanager
def applied(model: nn.Module, config: Merge | None = None) -> Iterator[Run]:
    """`apply` for the length of a ``with`` block; the handle's ``trace`` tells what was merged."""
    apply(model, config)
    try:
        with recording(model) as run:
            yield run
    finally:
        remove(model)
