"""Time several variants against each other: interleaved rounds, medians, ratios per round.

A machine drifts (clock, neighbours, allocator), so absolute times of separate runs do not
compare. Here every round runs every variant once, in an order that rotates, and a speed-up is the
median over rounds of the ratio within a round.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal

import torch

from turbovlm.errors import InputError

Progress = Callable[[int, int, str], object]
ClockKind = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Variant:
    """One thing to time.

    Attributes:
        run: the call that is timed.
        enter: makes the context in which ``run`` is called, e.g.
            ``lambda: turbovlm.applied(model, config)``. It is entered and left once a round, and
            neither is timed: so a patched and an unpatched variant can share one model.
    """

    run: Callable[[], object]
    enter: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Ratio:
    """A speed-up: the median over rounds, and an interval for it.

    Attributes:
        value: median of the ratios within each round; above 1 is faster than the reference.
        low: lower end of the distribution-free 95 % interval of that median (order statistics
            of the sign test); with fewer than 6 rounds the smallest ratio.
        high: upper end, likewise.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Timing:
    """Times of one variant; entry ``i`` of ``seconds`` and ``page_faults`` is round ``i``.

    Attributes:
        seconds: time of one call in each round.
        page_faults: minor page faults of one call in each round (all threads). Thousands of
            them mean that the allocator gives large temporaries back to the system and takes
            them anew: on a CPU that alone moves ratios by some percent.
        calls: calls in each round, whose mean is one entry.
    """

    seconds: tuple[float, ...]
    page_faults: tuple[float, ...]
    calls: int

    @property
    def median_s(self) -> float:
        """Median time of one call, seconds."""
        return median(self.seconds)

    @property
    def iqr(self) -> float:
        """Distance between the quartiles, seconds; 0 for a single round."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return high - low

    @property
    def median_page_faults(self) -> float:
        """Median number of minor page faults of one call."""
        return median(self.page_faults)

    def throughput(self, batch: int) -> float:
        """Samples in a second, where one call handles ``batch`` of them."""
        return batch / self.median_s

    def speedup_over(self, reference: Timing) -> Ratio:
        """How many times faster than ``reference``, from the same `compare`.

        Raises:
            InputError: if the two do not have the same rounds.
        """
        if len(self.seconds) != len(reference.seconds):
            raise InputError(
                f"{len(self.seconds)} rounds against {len(reference.seconds)}: time both "
                "variants in one call of compare"
            )
        ratios = [
            theirs / ours for theirs, ours in zip(reference.seconds, self.seconds, strict=True)
        ]
        return Ratio(median(ratios), *_median_interval(ratios))


@dataclass(frozen=True)
class Rounds:
    """How often, where and by which clock `compare` times.

    Args:
        number: rounds to run at least (``max_seconds`` aside).
        min_seconds: go on for at least this long.
        max_seconds: begin no further round after this long; two rounds are run in any case.
        warmup: untimed calls of every variant before the first round, at least 1: it also
            fixes how many calls make up a slot.
        settle: untimed calls after a variant's context is entered, in every round.
        slot_seconds: a fast variant is called several times in a round, until a slot lasts
            about this long, so that the clock and synchronisation do not count.
        device: where the work runs; an accelerator is synchronised before the clock is read.
        clock: ``"wall"``, or ``"cpu"`` for the processor time of this process: with one thread
            it hardly sees other jobs on the machine. With more threads it also counts the time
            in which they spin while they wait for each other, and on an accelerator it means
            nothing.

    Raises:
        InputError: for counts out of range, or the CPU clock on another device.
    """

    number: int = 10
    min_seconds: float = 0.0
    max_seconds: float = math.inf
    warmup: int = 2
    settle: int = 0
    slot_seconds: float = 0.02
    device: str | torch.device = "cpu"
    clock: ClockKind = "wall"

    def __post_init__(self) -> None:
        if self.number < 1 or self.warmup < 1 or self.settle < 0:
            raise InputError(
                f"rounds={self.number}, warmup={self.warmup} and settle={self.settle} cannot be: "
                "use at least 1, 1, 0"
            )
        on_cpu = torch.device(self.device).type == "cpu"
        if self.clock not in ("wall", "cpu") or (self.clock == "cpu" and not on_cpu):
            raise InputError(f"clock={self.clock!r} on {self.device} cannot be: use clock='wall'")


TEN = Rounds()


def compare(
    variants: Mapping[str, Variant | Callable[[], object]],
    rounds: Rounds = TEN,
    progress: Progress | None = None,
) -> dict[str, Timing]:
    """Time the variants in interleaved rounds.

    Args:
        variants: what to time, by name. A bare callable is a variant without a context.
        rounds: how often and where.
        progress: called as ``progress(round, rounds, name)`` before every slot.

    Returns:
        A `Timing` for every variant, in the given order, with the same number of rounds.

    Raises:
        InputError: without variants.
    """
    if not variants:
        raise InputError("there is nothing to time: give at least one variant")
    todo = {n: v if isinstance(v, Variant) else Variant(v) for n, v in variants.items()}
    timer = _Timer(torch.device(rounds.device), rounds.clock)
    calls: dict[str, int] = {}
    for name, variant in todo.items():
        if progress:
            progress(0, rounds.number, name)
        with variant.enter():
            for _ in range(rounds.warmup - 1):
                variant.run()
            once, _ = timer.slot(variant.run, 1)
        calls[name] = max(1, min(1000, math.ceil(rounds.slot_seconds / max(once, 1e-7))))
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    faults: dict[str, list[float]] = {name: [] for name in todo}
    start, done = time.perf_counter(), 0
    while _go_on(done, rounds, time.perf_counter() - start):
        gc.collect()
        for name in _order(list(todo), done):
            if progress:
                progress(done + 1, max(rounds.number, done + 1), name)
            variant = todo[name]
            with variant.enter():
                for _ in range(rounds.settle):
                    variant.run()
                second, fault = timer.slot(variant.run, calls[name])
            seconds[name].append(second)
            faults[name].append(fault)
        done += 1
    return {n: Timing(tuple(seconds[n]), tuple(faults[n]), calls[n]) for n in todo}


class _Timer:
    """Times a slot of calls: accelerator synchronised, garbage collector off."""

    def __init__(self, device: torch.device, kind: ClockKind) -> None:
        self.device = device
        self.read = time.perf_counter if kind == "wall" else time.process_time

    def slot(self, run: Callable[[], object], calls: int) -> tuple[float, float]:
        """Mean seconds and minor page faults of one call."""
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            self._synchronize()
            faults = _page_faults()
            start = self.read()
            for _ in range(calls):
                run()
            self._synchronize()
            seconds = self.read() - start
            faults = _page_faults() - faults
        finally:
            if was_enabled:
                gc.enable()
        return seconds / calls, faults / calls

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def _page_faults() -> int:
    if sys.platform == "win32":  # no such counter there
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _go_on(done: int, rounds: Rounds, spent: float) -> bool:
    if done < 2 and done < rounds.number:
        return True
    more = done < rounds.number or spent < rounds.min_seconds
    return spent < rounds.max_seconds and more


def _order(names: list[str], done: int) -> list[str]:
    """Every rotation, then every rotation reversed: each position and neighbour occurs equally."""
    start = done % len(names)
    turned = names[start:] + names[:start]
    return turned[::-1] if done // len(names) % 2 else turned


def _median_interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Order statistics that hold the true median with at least ``level`` probability."""
    ordered, count = sorted(values), len(values)
    tail, cut = 0.5**count, 0
    # P(fewer than cut + 1 of the values lie below the median), both sides
    while cut + 1 <= (count - 1) // 2:
        more = tail + math.comb(count, cut + 1) * 0.5**count
        if 2 * more > 1 - level:
            break
        tail, cut = more, cut + 1
    return ordered[cut], ordered[-1 - cut]
