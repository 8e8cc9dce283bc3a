"""Peak memory of one call beyond what was live before it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

from turbovlm.measure.speed import Variant


def peak_memory(
    run: Variant | Callable[[], object],
    *,
    device: str | torch.device = "cpu",
    warmup: int = 1,
) -> int:
    """Bytes that one call needs at its worst moment, beyond what was live when it began.

    What the call returns belongs to it; weights and inputs do not. On CUDA the number is the
    caching allocator's own peak. On the CPU it is the running total of everything torch's
    allocator hands out on the calling thread, temporaries inside a kernel included (the score
    tiles of fused attention, say); scratch space that a vendor library takes for itself is not
    seen. It is exact and does not depend on the machine's load.

    Args:
        run: the call, or a `Variant`, whose context is entered before and not measured.
        device: where the work runs; anything but CUDA is measured at the CPU's allocator.
        warmup: calls before the measured one, so that what is built once (workspaces, caches)
            counts as live.
    """
    variant = run if isinstance(run, Variant) else Variant(run)
    place = torch.device(device)
    with variant.enter():
        for _ in range(warmup):
            variant.run()
        return _cuda(variant.run, place) if place.type == "cuda" else _cpu(variant.run)


def _cuda(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del result  # alive until here: the output is part of the peak
    return max(0, peak - before)


def _cpu(run: Callable[[], object]) -> int:
    with _silent_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        result = run()
    del result
    assert log.profiler is not None
    assert log.profiler.kineto_results is not None
    changes = [
        (event.start_ns(), event.nbytes())  # pyright: ignore[reportAttributeAccessIssue]
        for event in log.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    return highest(size for _, size in sorted(changes, key=lambda change: change[0]))


def highest(changes: Iterable[int]) -> int:
    """Highest running total of a sequence of changes, from 0."""
    total = peak = 0
    for change in changes:
        total += change
        peak = max(peak, total)
    return peak


@contextmanager
def _silent_profiler() -> Iterator[None]:
    """The profiler writes start and stop lines to stderr unless told not to when it first runs."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "6")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
