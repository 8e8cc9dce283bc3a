"""What stands in for a muted branch of a block."""

from __future__ import annotations

from typing import Any, Literal

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
        x = _tensors(args, kwargs)[0]
        return _as_returned(x.new_zeros(x.shape[0], 1, 1), self.extras)


class Pass(nn.Module):
    """The residual stream itself, in place of a child that adds it and normalises (post-norm).

    Args:
        which: whether the residual is the first tensor that the child gets (attention) or the
            last one (BERT's MLP output, which gets the branch and then the residual).
        extras: as in `Mute`.
    """

    def __init__(self, which: Literal["first", "last"], extras: int | None) -> None:
        super().__init__()
        self.index, self.extras = (0 if which == "first" else -1), extras

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """``(B, N, C)`` as it came, alone or followed by as many None as there are extras."""
        return _as_returned(_tensors(args, kwargs)[self.index], self.extras)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    return [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]


def _as_returned(x: Tensor, extras: int | None) -> Any:
    return x if extras is None else (x,) + (None,) * extras
