"""The state of a running forward, in one form for encoders, denoisers and language models.

A patch holds what never changes while it is applied. What belongs to one forward is a call, found
by the thread that runs it; a module that gradient checkpointing runs again finds the state that
it had by the memory of its input, which no other tensor can have while it is remembered.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from turbovlm.config import Setting
from turbovlm.errors import UnsupportedInput
from turbovlm.plug.torch_private import StorageWeakRef, storage_of

Config = TypeVar("Config", bound=Setting)
Call = TypeVar("Call")
Entry = TypeVar("Entry")


class Memory(Generic[Entry]):
    """Entries kept by tensor, for as long as its storage lives."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Any, ...], tuple[StorageWeakRef, Entry]] = {}

    def keep(self, x: Tensor, entry: Entry) -> None:
        """Remember ``entry`` with ``x``."""
        found = storage_of(x)
        if found is not None:
            key, alive = found
            self._entries[key, x.storage_offset(), tuple(x.shape)] = alive, entry

    def find(self, x: Tensor) -> Entry | None:
        """What was kept with this tensor, or with another view of the same memory."""
        found = storage_of(x)
        if found is None:
            return None
        kept = self._entries.get((found[0], x.storage_offset(), tuple(x.shape)))
        return None if kept is None else kept[1]

    def sweep(self) -> None:
        """Forget tensors that are gone; other threads may be doing the same, or add theirs."""
        for key, (alive, _) in list(self._entries.items()):
            if alive.expired():
                self._entries.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)


class Recorder:
    """Keeps the record of the last forward of one patch, for the thread that opened it.

    Args:
        patch: whose forwards.
        observe: called with what each block saw, while it runs.
    """

    def __init__(
        self, patch: Patch[Any, Any, Any], observe: Callable[[Any], object] | None = None
    ) -> None:
        self.patch, self.thread, self.observe = patch, threading.get_ident(), observe
        self.record: Any = None

    def __enter__(self) -> Self:
        self.patch.traced_record = None
        self.patch.recorders.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.patch.recorders.remove(self)
        self.found()

    def found(self) -> Any:
        """The record, or None before the first forward."""
        if self.record is None:
            self.record = self.patch.traced_record
        return self.record


class Patch(Generic[Config, Call, Entry]):
    """One patched part of a model: the call that each thread runs, and what is recorded of it.

    Attributes:
        config: the setting that was applied.
        recorders: those who want a record of each forward.
        traced_record: what a compiled forward recorded last.
        traced: the call that a compiler traces, or that compiled parts of a model read.
        memory: for gradient checkpointing.
        owners: pipelines that changed their class with this part of theirs.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._fresh()

    def _fresh(self) -> None:
        self.recorders: list[Recorder] = []
        self.traced_record: Any = None
        self.traced: Call | None = None
        self.memory: Memory[Entry] = Memory()
        self.owners: weakref.WeakSet[Any] = weakref.WeakSet()
        self._threads = threading.local()

    def current(self) -> Call | None:
        """The call that this thread (or the tracing compiler) is running."""
        if torch.compiler.is_compiling():
            return self.traced
        return getattr(self._threads, "call", None)

    def begin(self, call: Call | None) -> Call | None:
        """Make ``call`` this thread's own; returns the one before, for `end`."""
        before = self.current()
        self.traced = call  # a part that is compiled on its own reads this one
        if not torch.compiler.is_compiling():
            self._threads.call = call
        return before

    def end(self, before: Call | None) -> None:
        """Take up again what ran before `begin`; nothing of a forward that raised stays."""
        self.begin(before)

    def record(self, record: object) -> None:
        """Hand the record of a forward to those who record in this thread, else to all."""
        if torch.compiler.is_compiling():
            self.traced_record = record
            return
        own = [r for r in self.recorders if r.thread == threading.get_ident()]
        for recorder in own or self.recorders:
            recorder.record = record

    @property
    def observers(self) -> list[Callable[[Any], object]]:
        """Who wants to see the blocks of this thread's forwards while they run.

        Raises:
            UnsupportedInput: in compiled code, which cannot call them.
        """
        found = [r for r in self.recorders if r.observe is not None]
        if not found:
            return []
        if torch.compiler.is_compiling():
            raise UnsupportedInput(
                "recording(observe=...) calls a function in every block, which compiled code "
                "cannot: observe the model before it is compiled"
            )
        here = threading.get_ident()
        return [r.observe for r in found if r.observe is not None and r.thread == here]

    def __getstate__(self) -> dict[str, Any]:
        running = ("_threads", "memory", "recorders", "traced_record", "traced", "owners")
        return {k: v for k, v in self.__dict__.items() if k not in running}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._fresh()
        self.__dict__.update(state)
