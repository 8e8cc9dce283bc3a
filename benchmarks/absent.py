"""Triton for a device that is not there: kernels are built and looked up, and never launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Absent:
    """A driver that knows what the device would be, and has none."""

    def __init__(self, target: GPUTarget) -> None:
        self.target, self.device = target, str(target)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return self.device

    def get_current_stream(self, _: object = None) -> int:
        return 0


@contextmanager
def absent(name: str, launched: Callable[[str, Any], object]) -> Iterator[None]:
    """In place of a launch its kernel is built for a target, or found in Triton's cache.

    Args:
        name: of the target.
        launched: told the kernel's name and what was built.

    Triton keeps this driver to the end of the process.
    """
    target, run = TARGETS[name], JITFunction.run

    def look_up(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if target.backend == "hip" and "PRECISION" in options:
            options["PRECISION"] = "ieee"
        launched(self.fn.__name__, run(self, *args, grid=grid, warmup=True, **options))

    driver: Any = Absent(target)
    triton.runtime.driver.set_active(driver)
    JITFunction.run = look_up
    try:
        yield
    finally:
        JITFunction.run = run
