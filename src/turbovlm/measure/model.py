"""One number for one model; to compare two, use `compare`, which interleaves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import InputError
from turbovlm.measure.speed import Rounds, Variant, compare


def throughput(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
    *,
    rounds: int = 10,
) -> float:
    """Samples that the model's forward handles in a second: median over rounds, no gradients.

    Args:
        model: any module, patched or not, in the mode it is in.
        inputs: one tensor, a tuple of positional arguments, or a mapping of keyword arguments;
            the first dimension of the first tensor is the batch.
        rounds: timed rounds, after a warm-up.

    Raises:
        InputError: if there is no tensor among the inputs.
    """
    parts = (inputs,) if isinstance(inputs, Tensor) else inputs
    values = list(parts.values()) if isinstance(parts, Mapping) else list(parts)
    first = next((v for v in values if isinstance(v, Tensor)), None)
    if first is None:
        raise InputError("inputs hold no tensor to take the batch from: give pixel values")

    def run() -> object:
        with torch.inference_mode():
            return model(**parts) if isinstance(parts, Mapping) else model(*parts)

    timing = compare({"model": Variant(run)}, Rounds(rounds, device=first.device))["model"]
    return timing.throughput(first.shape[0])
