"""Every name of torch that is not public, in one place, with what it stands for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

P = ParamSpec("P")
R = TypeVar("R")


def never_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """What `torch.compiler.disable` does, which imports all of the compiler to do it."""
    function.__dict__["_torchdynamo_disable"] = True
    return function


@never_compiled
def uncompiled(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function and leave it, and all that it calls, to eager torch."""
    if "torch._dynamo" not in sys.modules:  # the compiler was never loaded
        return function(*args, **kwargs)
    eager: Any = torch.compiler.disable(function)
    return eager(*args, **kwargs)


def in_backward() -> bool:
    """Whether this code runs inside a backward pass: gradient checkpointing runs modules again."""
    return torch._C._current_graph_task_id() != -1


def storage_of(x: Tensor) -> tuple[int, StorageWeakRef] | None:
    """The identity of the memory behind ``x``, and a weak reference that keeps it unique.

    While the reference lives, no other storage can have the same identity, even after this one
    is freed. None for a tensor without memory of its own (vmap, functorch).
    """
    try:
        storage = x.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None
    return storage._cdata, StorageWeakRef(storage)
