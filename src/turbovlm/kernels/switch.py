"""Whether Triton or torch computes: one switch for the process, and what happens on failure."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from turbovlm.errors import ConfigError

Mode = Literal["auto", "torch", "triton"]
MODES: tuple[str, ...] = get_args(Mode)
VARIABLE = "TURBOVLM_KERNELS"
"""Environment variable with the mode that a process starts in."""
OLDEST = (8, 0)
"""Compute capability from which `auto` takes Triton: bf16 products on tensor cores."""

T = TypeVar("T")

_mode: str = os.environ.get(VARIABLE, "auto")
_failed: set[str] = set()


class KernelWarning(RuntimeWarning):
    """A Triton kernel could not be built or launched; torch computes the same from then on."""


def use_kernels(mode: Mode) -> None:
    """Choose what computes attention with sizes, plans and merges, for the whole process.

    Args:
        mode: ``"auto"``, the default, is Triton on CUDA and ROCm devices of compute capability
            8.0 and newer where Triton is installed, and torch elsewhere. ``"torch"`` is torch
            everywhere. ``"triton"`` is Triton, and an error where it cannot run. In every mode
            torch computes where gradients are needed, on the meta device, and for sizes that
            the kernels do not cover.

    Raises:
        ConfigError: for another word.
    """
    global _mode
    _mode = _checked(mode, "use_kernels takes")


def kernel_mode() -> str:
    """The mode in use.

    Raises:
        ConfigError: if the environment variable holds another word than the three modes.
    """
    return _checked(_mode, f"{VARIABLE} must be")


def available(device: torch.device | str) -> bool:
    """Whether Triton kernels can run on ``device``; a CPU counts with TRITON_INTERPRET=1."""
    device = torch.device(device)
    return obstacle(device.type, device.index) is None


@functools.cache
def obstacle(kind: str, index: int | None) -> str | None:
    """Why Triton cannot run on a device, or None if it can.

    Args:
        kind: type of the device, ``"cuda"`` for ROCm too.
        index: its index, None for the current one.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if kind == "cuda":
        capability = torch.cuda.get_device_capability(index)
        if capability < OLDEST:
            have, need = (".".join(map(str, c)) for c in (capability, OLDEST))
            return f"the device has compute capability {have} and the kernels need {need}"
        return None
    if kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"Triton does not run on {kind!r} tensors"


def wanted(first: Tensor, *others: Tensor | None) -> bool:
    """Whether the mode asks for Triton for these tensors.

    While a compiler traces, only the mode and the type of device decide: the rest is decided
    when the operator runs.

    Raises:
        ConfigError: in mode ``"triton"``, if it cannot run on the device.
    """
    mode = kernel_mode()
    device = first.device
    if mode == "torch" or device.type == "meta" or (mode == "auto" and device.type != "cuda"):
        return False
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (first, *others)):
        return False
    if torch.compiler.is_compiling():
        return True
    reason = obstacle(device.type, device.index)
    if reason is not None and mode == "triton":
        raise ConfigError(
            f"kernels are set to 'triton' but {reason}: choose 'auto' or 'torch' with "
            f"turbovlm.kernels.use_kernels or the environment variable {VARIABLE}"
        )
    return reason is None


def traced(x: Tensor) -> bool:
    """Whether a call must go through a registered operator: something other than eager torch
    looks on (a compiler, an exporter, fake tensors).
    """
    return torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter)


def attempt(name: str, x: Tensor, kernel: Callable[[], T], torch_path: Callable[[], T]) -> T:
    """Run a kernel, or the torch path where the kernel failed now or before.

    Args:
        name: of the kernel, as the warning shows it.
        x: one of its tensors, for the device.
        kernel: builds and launches.
        torch_path: computes the same.

    Raises:
        torch.OutOfMemoryError: as torch would raise it; the torch path needs more memory.
    """
    if name in _failed:
        return torch_path()
    try:
        with _on(x.device):
            return kernel()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _failed.add(name)
        cause = next(iter(str(error).strip().splitlines()), "")
        warnings.warn(
            f"the Triton kernel {name!r} could not be built or launched on {x.device} "
            f"({type(error).__name__}: {cause}); torch computes the same for the rest of this "
            f"process. {VARIABLE}=torch avoids the attempt",
            KernelWarning,
            stacklevel=2,
        )
        return torch_path()


def _checked(mode: str, what: str) -> str:
    if mode not in MODES:
        raise ConfigError(f"{what} one of {', '.join(MODES)}, not {mode!r}")
    return mode


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
