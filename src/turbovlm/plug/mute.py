"""What stands in for a muted branch of a block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Mute(nn.Module):
    """A zero that broadcasts over the residual stream, in the form the real child returns.

    Args:
        extras: None for a child that returns a tensor; else how many values beside the tensor
            are in the tuple that it returns (attention weights, usually).
    """

    def __init__(self, extras: int | None) -> None:
        super().__init__()
        self.extras = extras

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """``(B, 1, 1)`` zeros, alone or followed by as many None as there are extras."""
        x = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        zero = x.new_zeros(x.shape[0], 1, 1)
        return zero if self.extras is None else (zero,) + (None,) * self.extras
