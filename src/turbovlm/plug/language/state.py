"""What a patched vision-language model remembers: the setting, and the running forward."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from turbovlm.config.visual_tokens import VisualTokens
from turbovlm.plug.language.row import LanguageRow
from turbovlm.plug.language.trace import VisualTrace


@dataclass
class Call:
    """One forward of the outer model.

    Attributes:
        ids: ``(B, N)`` input ids.
        mask: ``(B, past + N)`` with 0 for padding; None where it was given in another form.
        features: modality to the projected features of its images, as the host has them.
    """

    ids: Tensor
    mask: Tensor | None = None
    features: dict[str, Any] = field(default_factory=dict)


class Patch:
    """One patched model: immutable facts, plus the running call of each thread."""

    def __init__(self, row: LanguageRow, config: VisualTokens, tokens: Mapping[str, int]) -> None:
        self.row, self.config = row, config
        self.tokens = dict(tokens)
        self.recording = False
        self.trace: VisualTrace | None = None
        self._threads = threading.local()

    def current(self) -> Call | None:
        """The forward of the outer model that this thread is running."""
        return getattr(self._threads, "call", None)

    @contextmanager
    def running(self, call: Call | None) -> Iterator[None]:
        """Make ``call`` this thread's own."""
        before = self.current()
        self._threads.call = call
        try:
            yield
        finally:
            self._threads.call = before

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(self.__dict__)
        for running in ("_threads", "trace"):
            kept.pop(running)
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.trace = None
        self._threads = threading.local()


@dataclass(frozen=True)
class Site:
    """Where a swapped part of the model stands."""

    patch: Patch
    host: type[nn.Module]
    names: tuple[str, ...]
