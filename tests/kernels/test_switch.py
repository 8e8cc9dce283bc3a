"""The switch on a machine without a GPU: torch computes, and what cannot run says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from turbovlm.errors import ConfigError
from turbovlm.kernels import attend, available, kernel_mode, plain, switch, use_kernels


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(switch, "_mode", "auto")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    switch.obstacle.cache_clear()
    yield
    switch.obstacle.cache_clear()


def small() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(1, 2, 9, 16), torch.rand(1, 9)


def test_auto_on_a_cpu_is_torch() -> None:
    k, bias = small()
    assert kernel_mode() == "auto"
    assert not available("cpu")
    assert torch.equal(attend(k, k, k, bias, 0.25), plain.torch_attend(k, k, k, bias, 0.25))


def test_triton_on_a_cpu_is_an_error_that_names_the_fix() -> None:
    k, bias = small()
    use_kernels("triton")
    with pytest.raises(ConfigError, match=r"does not run on 'cpu'.*TURBOVLM_KERNELS"):
        attend(k, k, k, bias, 0.25)
    use_kernels("torch")
    attend(k, k, k, bias, 0.25)


def test_another_word_is_an_error() -> None:
    word: Any = "cuda"
    with pytest.raises(ConfigError, match="one of auto, torch, triton, not 'cuda'"):
        use_kernels(word)
    assert kernel_mode() == "auto"


@pytest.mark.parametrize("word", ["torch", "gpu"])
def test_the_environment_sets_the_mode(word: str) -> None:
    code = "from turbovlm.kernels import kernel_mode; print(kernel_mode())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, switch.VARIABLE: word},
        capture_output=True,
        text=True,
    )
    if word == "torch":
        assert done.stdout.split() == ["torch"]
    else:
        assert "ConfigError: TURBOVLM_KERNELS must be one of auto, torch, triton" in done.stderr


@pytest.mark.parametrize(
    ("capability", "runs"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((12, 0), True)]
)
def test_old_cards_are_left_to_torch(
    capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert available("cuda:0") is runs
    if not runs:
        assert "7.5 and the kernels need 8.0" in str(switch.obstacle("cuda", 0))


def test_without_triton_nothing_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not available("cuda:0")
    use_kernels("triton")
    k, bias = small()
    with pytest.raises(ConfigError, match="Triton is not installed"):
        attend(k, k, k, bias, 0.25)


def test_the_room_does_not_import_triton() -> None:
    code = (
        "import sys, torch; from turbovlm.kernels import attend; k = torch.randn(1, 1, 3, 16);"
        "attend(k, k, k, torch.zeros(1, 3), 1.0); print('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
