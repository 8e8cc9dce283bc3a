"""Peak memory of sequences of tensors whose bytes are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from turbovlm.measure import Variant, memory, peak_memory

KIB = 1024


def kib(count: int) -> torch.Tensor:
    return torch.empty(count * KIB, dtype=torch.uint8)


def one_after_the_other() -> None:
    first = kib(100)
    del first
    second = kib(70)
    del second


def overlapping() -> torch.Tensor:
    first, second = kib(100), kib(50)
    del first
    third = kib(30)
    del second
    return third


def keeps_its_result() -> list[torch.Tensor]:
    return [kib(10) for _ in range(12)]


@pytest.mark.parametrize(
    ("run", "expected"),
    [(one_after_the_other, 100), (overlapping, 150), (keeps_its_result, 120), (lambda: None, 0)],
)
def test_hand_cases(run: Callable[[], object], expected: int) -> None:
    assert peak_memory(run) == expected * KIB


@given(sizes=st.lists(st.integers(1, 64), max_size=12), keep=st.integers(1, 4))
@settings(deadline=None, max_examples=15)
def test_a_window_of_live_tensors(sizes: list[int], keep: int) -> None:
    def run() -> None:
        live: list[torch.Tensor] = []
        for size in sizes:
            del live[: max(0, len(live) - keep + 1)]
            live.append(kib(size))

    windows = [sum(sizes[max(0, i - keep + 1) : i + 1]) for i in range(len(sizes))]
    assert peak_memory(run) == max(windows, default=0) * KIB


def test_what_was_live_before_does_not_count() -> None:
    held = [kib(500)]

    def run() -> torch.Tensor:
        held.clear()  # freeing it buys nothing either
        return kib(100)

    assert peak_memory(run, warmup=0) == 100 * KIB


def test_temporaries_inside_a_kernel_count() -> None:
    query = torch.zeros(2, 4, 64, 16)
    out, statistics = query.nbytes, 2 * 4 * 64 * 4

    def fused() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, query, query)

    def eager() -> torch.Tensor:
        return (query @ query.transpose(-1, -2)).softmax(-1) @ query

    scores = 2 * 4 * 64 * 64 * 4
    assert peak_memory(fused) > out + statistics
    assert peak_memory(eager) >= 2 * scores


def test_warmup_and_the_context_are_not_measured() -> None:
    built: list[torch.Tensor] = []
    entered: list[torch.Tensor] = []

    def run() -> torch.Tensor:
        if not built:
            built.append(kib(300))
        return kib(20)

    @contextmanager
    def context() -> Iterator[None]:
        entered.append(kib(200))
        yield
        entered.clear()

    assert peak_memory(Variant(run, context)) == 20 * KIB
    assert not entered
    built.clear()
    assert peak_memory(Variant(run, context), warmup=0) == 320 * KIB


def test_running_total() -> None:
    assert memory.highest([5, -3, 4, -6, 2]) == 6
    assert memory.highest([-4, 2]) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_counts_alike() -> None:
    def run() -> torch.Tensor:
        first = torch.empty(8 * KIB * KIB, dtype=torch.uint8, device="cuda")
        del first
        return torch.empty(6 * KIB * KIB, dtype=torch.uint8, device="cuda")

    assert peak_memory(run, device="cuda") == 8 * KIB * KIB
