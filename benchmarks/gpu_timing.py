"""Times and memory of calls on a device: interleaved rounds, CUDA events, CUDA graphs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

Run = Callable[[], object]

SLOT_MS = 5.0
"""Short calls are repeated until a slot takes about this long."""
MOST_CALLS = 20
FEWEST_ROUNDS = 3


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once_ms(run: Run, device: torch.device, calls: int = 1) -> float:
    """Milliseconds of one call, from ``calls`` in a row that start on an idle device."""
    synchronize(device)
    if device.type != "cuda":
        before = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - before) * 1e3 / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def medians_ms(
    runs: Mapping[str, Run], device: torch.device, seconds: float, rounds: int
) -> dict[str, float]:
    """Median milliseconds of every call; each round times all of them once, in turn.

    Args:
        runs: what to time, under names.
        device: where they run.
        seconds: after which no further round starts, once there are three.
        rounds: at most.
    """
    calls: dict[str, int] = {}
    for name, run in runs.items():
        once_ms(run, device)  # warm
        spent = once_ms(run, device)
        calls[name] = max(1, min(MOST_CALLS, math.ceil(SLOT_MS / max(spent, 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and time.perf_counter() > end:
            break
        for name, run in runs.items():
            times[name].append(once_ms(run, device, calls[name]))
    return {name: median(found) for name, found in times.items()}


def captured(run: Run) -> Run:
    """The same call as a CUDA graph; nothing in it may wait for the device."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def peak_mib(run: Run, device: torch.device) -> float | None:
    """Most memory in use beyond what was in use before the call; None where it is not counted."""
    if device.type != "cuda":
        return None
    run()
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def launches(run: Run, device: torch.device) -> dict[str, int]:
    """How often each kernel of the device runs in one call; empty on a CPU."""
    if device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    run()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        synchronize(device)
    return {
        event.key: event.count for event in seen.key_averages() if event.device_type.name == "CUDA"
    }


def without_synchronizing(run: Run, device: torch.device) -> None:
    """Run with an error for every operation that makes the host wait for the device."""
    if device.type != "cuda":
        run()
        return
    run()
    synchronize(device)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    synchronize(device)
