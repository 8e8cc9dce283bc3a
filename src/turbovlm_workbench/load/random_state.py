"""Building a model draws weights before the checkpoint fills them: the caller's draws stay his."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def keeps_random_state(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """The function, which leaves torch's default generator of the CPU as it was."""

    @wraps(function)
    def kept(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        with torch.random.fork_rng(devices=[]):
            return function(*args, **kwargs)

    return kept
