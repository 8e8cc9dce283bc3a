"""Pseudo-random numbers from an integer hash: the same on every device, and traceable.

A `torch.Generator` would break the graph under torch.compile and differ from device to device.
"""

from __future__ import annotations

import torch
from torch import Tensor

# modulo 2^31 - 1 with factors below 2^17 keeps every product inside int64
_PRIME = 2147483647
_FACTORS = (48271, 69621, 16807)


def random_scores(count: int, seed: int, block: int, device: torch.device) -> Tensor:
    """``(count,)`` numbers in [0, 1) from (seed, block, position)."""
    x = torch.arange(1, count + 1, device=device, dtype=torch.int64)
    x = (x * 40503 + (seed % 65521) * 60493 + (block + 1) * 30011) % _PRIME
    return _mixed(x).float() / _PRIME


def random_integers(count: int, seed: Tensor) -> Tensor:
    """``(count,)`` integers from 0, for a seed ``()`` that is a tensor on the device.

    What it holds may differ in every step, and a compiler must not have to ask.
    """
    x = torch.arange(1, count + 1, device=seed.device, dtype=torch.int64) * 40503
    return _mixed((x + seed % 1048573 * 60493) % _PRIME) >> 7


def _mixed(x: Tensor) -> Tensor:
    for factor in _FACTORS:
        x = (x ^ (x >> 13)) * factor % _PRIME
    return x
