"""Where and in which number format a model runs, checked before anything is loaded."""

from __future__ import annotations

import torch

from turbovlm.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str | None) -> torch.device:
    """The device called ``name``; without a name the accelerator, or the CPU if there is none.

    Raises:
        ConfigError: if there is no such device on this machine.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).add(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = ["cpu"]
        if torch.accelerator.is_available():
            kind = torch.accelerator.current_accelerator()
            here += [f"{kind}:{index}" for index in range(torch.accelerator.device_count())]
        raise ConfigError(f"no device {name!r} here: use --device {' or '.join(here)}") from error
    if device.type == "meta":
        raise ConfigError("the meta device computes nothing: use --device cpu")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format called ``name``, which ``device`` must really compute in.

    Raises:
        ConfigError: for an unknown name, or one that the device does not support.
    """
    if name not in DTYPES:
        raise ConfigError(f"--dtype must be one of {', '.join(DTYPES)}, not {name!r}")
    dtype = DTYPES[name]
    if not _computes(dtype, device):
        raise ConfigError(f"{device} does not compute in {name}: use --dtype fp32")
    return dtype


def _computes(dtype: torch.dtype, device: torch.device) -> bool:
    if dtype is torch.bfloat16 and device.type == "cuda":
        # Older cards emulate bf16, which would time what is not run in practice.
        return torch.cuda.is_bf16_supported(including_emulation=False)
    x = torch.ones(1, 1, 8, 8, dtype=dtype, device=device)
    try:
        torch.matmul(torch.nn.functional.scaled_dot_product_attention(x, x, x), x)
    except (RuntimeError, TypeError):
        return False
    return True
