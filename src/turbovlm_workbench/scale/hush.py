"""Libraries that write to the terminal past Python's streams."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

STDOUT, STDERR = 1, 2


@contextmanager
def hushed(descriptor: int) -> Iterator[None]:
    """What is written to a file descriptor meanwhile goes nowhere.

    Args:
        descriptor: `STDOUT` or `STDERR`.
    """
    kept, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(nowhere)
