"""Copies of a model that need no memory of their own."""

from __future__ import annotations

import copy

from torch import nn


def share_weights(model: nn.Module) -> nn.Module:
    """A copy with modules of its own and the same parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})
