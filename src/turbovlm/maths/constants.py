"""Small index tensors that depend on shapes alone, made once a device.

On a GPU every `arange` is a launch, and a forward needs the same ones in every block.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def positions(first: int, end: int, step: int, device: torch.device) -> Tensor:
    """``arange(first, end, step)`` int64; not to be written to."""
    end = max(first, end)  # a short sequence may have no sources
    if torch.compiler.is_compiling():
        return torch.arange(first, end, step, device=device)
    return _positions(first, end, step, device, torch.is_inference_mode_enabled())


@functools.lru_cache(maxsize=512)
def _positions(first: int, end: int, step: int, device: torch.device, inference: bool) -> Tensor:
    # tensors made in inference mode cannot be used in training, so that is part of the key
    return torch.arange(first, end, step, device=device)


def clear_constants() -> None:
    """Make them anew when they are needed again."""
    _positions.cache_clear()
