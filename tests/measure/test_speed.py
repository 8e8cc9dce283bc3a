"""The harness on a clock that the test turns by hand: no real time is asserted."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from turbovlm.errors import InputError
from turbovlm.measure import Rounds, Timing, Variant, compare, speed


class Hands:
    """A clock that stands still unless moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def variant(self, name: str, seconds: float, enter: float = 0.0) -> Variant:
        def run() -> None:
            self.log.append(name)
            self.now += seconds

        @contextmanager
        def context() -> Iterator[None]:
            self.log.append(f"+{name}")
            self.now += enter
            try:
                yield
            finally:
                self.now += enter
                self.log.append(f"-{name}")

        def open_context() -> AbstractContextManager[object]:
            return context()

        return Variant(run, open_context)


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    clock = Hands()
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(speed.gc, "collect", lambda: 0)  # takes long in a large process
    return clock


def test_only_the_run_is_timed(hands: Hands) -> None:
    variants = {"a": hands.variant("a", 2.0, enter=50.0), "b": hands.variant("b", 1.0)}
    times = compare(variants, Rounds(3, warmup=1))
    assert times["a"].seconds == (2.0, 2.0, 2.0)
    assert times["b"].median_s == 1.0
    assert list(times) == ["a", "b"]
    assert times["a"].throughput(8) == 4.0


def test_every_round_runs_every_variant_in_its_context_and_orders_balance(hands: Hands) -> None:
    variants = {n: hands.variant(n, 1.0) for n in "abc"}
    compare(variants, Rounds(6, warmup=1))
    slots = [hands.log[i : i + 3] for i in range(0, len(hands.log), 3)]
    assert all(slot == [f"+{slot[1]}", slot[1], f"-{slot[1]}"] for slot in slots)
    rounds = ["".join(s[1] for s in slots[i : i + 3]) for i in range(3, len(slots), 3)]
    assert len(set(rounds)) == 6, "three variants have six orders, all of which occur"
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)


def test_fast_variants_are_called_often_enough(hands: Hands) -> None:
    variants = {"slow": hands.variant("slow", 1.0), "fast": hands.variant("fast", 2**-7)}
    times = compare(variants, Rounds(2, warmup=1, slot_seconds=0.0625))
    assert times["slow"].calls == 1
    assert times["fast"].calls == 8
    assert times["fast"].median_s == 2**-7


def test_the_cpu_clock_is_another_one(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.time, "process_time", lambda: hands.now / 4)  # others got the rest
    times = compare({"a": hands.variant("a", 1.0)}, Rounds(2, clock="cpu"))
    assert times["a"].seconds == (0.25, 0.25)


def test_warmup_and_settle_are_run_and_not_timed(hands: Hands) -> None:
    times = compare({"a": hands.variant("a", 1.0)}, Rounds(2, warmup=3, settle=2))
    assert hands.log.count("a") == 3 + 2 * (2 + 1)
    assert times["a"].seconds == (1.0, 1.0)


def test_how_long_it_goes_on(hands: Hands) -> None:
    def rounds(**limits: float) -> int:
        times = compare({"a": hands.variant("a", 1.0)}, Rounds(5, warmup=1, **limits))  # pyright: ignore[reportArgumentType]
        return len(times["a"].seconds)

    assert rounds() == 5
    assert rounds(min_seconds=9.0) == 9
    assert rounds(max_seconds=3.0) == 3
    assert rounds(max_seconds=0.0) == 2


def test_a_context_is_left_when_the_run_fails() -> None:
    left: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        try:
            yield
        finally:
            left.append("left")

    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        compare({"a": Variant(fail, context)}, Rounds(1))
    assert left == ["left"]


def test_speedup_is_the_median_of_ratios_within_rounds() -> None:
    # the machine gets 10 times slower half way: ratios do not see it, medians of times would
    reference = timing(2.0, 2.0, 20.0, 20.0, 24.0)
    ours = timing(1.0, 1.0, 10.0, 10.0, 10.0)
    ratio = ours.speedup_over(reference)
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 2.0, 2.4)
    assert str(ratio) == "2.000 [2.000, 2.400]"
    with pytest.raises(InputError, match="one call of compare"):
        ours.speedup_over(timing(1.0))


@pytest.mark.parametrize(
    ("count", "cut"),
    # largest k with P(Binomial(n, 1/2) <= k) <= 2.5 %, from the tables of the sign test
    [(2, 0), (5, 0), (8, 0), (9, 1), (11, 1), (12, 2), (15, 3), (20, 5), (25, 7), (50, 17)],
)
def test_interval_is_that_of_the_sign_test(count: int, cut: int) -> None:
    ours = timing(*(1.0 for _ in range(count)))
    ratio = ours.speedup_over(timing(*(float(i) for i in range(1, count + 1))))
    assert (ratio.low, ratio.high) == (1.0 + cut, float(count - cut))


def test_quartiles() -> None:
    assert timing(1.0, 2.0, 3.0, 4.0, 5.0).iqr == 2.0
    assert timing(1.0).iqr == 0.0
    assert Timing((1.0, 2.0), (4.0, 8.0), 1).median_page_faults == 6.0


def test_progress_tells_what_runs(hands: Hands) -> None:
    told: list[tuple[int, int, str]] = []
    variants = {"a": hands.variant("a", 1.0), "b": hands.variant("b", 1.0)}
    compare(variants, Rounds(1), lambda *state: told.append(state))
    assert told == [(0, 1, "a"), (0, 1, "b"), (1, 1, "a"), (1, 1, "b")]


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="at least one variant"):
        compare({})
    for rounds, warmup, settle in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(InputError, match="use at least"):
            Rounds(rounds, warmup=warmup, settle=settle)


def test_the_cpu_clock_cannot_time_an_accelerator() -> None:
    with pytest.raises(InputError, match="clock='wall'"):
        Rounds(clock="cpu", device="cuda")


@pytest.mark.skipif(sys.platform == "win32", reason="no page fault counter there")
def test_page_faults_of_a_large_temporary_are_seen() -> None:
    size, page = 64 << 20, 4096

    def large() -> None:
        # not a tensor: in a process that has run for long, malloc may have that much at hand
        with mmap.mmap(-1, size) as memory:
            memory[::page] = bytes(size // page)

    times = compare({"large": large, "none": lambda: None}, Rounds(3, slot_seconds=0))
    assert times["large"].median_page_faults >= 32
    assert times["none"].median_page_faults < 32


def timing(*seconds: float) -> Timing:
    return Timing(seconds, tuple(0.0 for _ in seconds), 1)
