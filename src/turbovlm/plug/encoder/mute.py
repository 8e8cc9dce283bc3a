"""Stand-ins for the children of a branch that is muted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Zero(nn.Module):
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
        x = _first(args, kwargs)
        return _as_returned(x.new_zeros(x.shape[0], 1, 1), self.extras)


class Residual(nn.Module):
    """The residual stream itself, in place of a child that adds it and normalises (post-norm).

    It is the first tensor that such a child gets: BERT's MLP output gets the branch before the
    residual, but with the branch muted too both are the residual.

    Args:
        extras: as in `Zero`.
    """

    def __init__(self, extras: int | None) -> None:
        super().__init__()
        self.extras = extras

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """``(B, N, C)`` as it came, alone or followed by as many None as there are extras."""
        return _as_returned(_first(args, kwargs), self.extras)


def stand_ins(
    attention: tuple[str, ...],
    mlp: tuple[str, ...],
    extras: int | None,
    *,
    post_norm: bool,
    mlp_adds: bool,
) -> tuple[Mapping[str, nn.Module], Mapping[str, nn.Module]]:
    """What replaces the children of the attention branch and those of the MLP branch.

    Args:
        attention: names of the children, the attention module first.
        mlp: likewise.
        extras: what the attention module returns beside its tensor, see `Zero`.
        post_norm: whether all children add the residual themselves.
        mlp_adds: whether those of the MLP branch do.
    """
    muted_mlp = dict.fromkeys(mlp, (Residual if post_norm or mlp_adds else Zero)(None))
    if post_norm:
        return dict.fromkeys(attention, Residual(extras)), muted_mlp
    return dict.fromkeys(attention, Zero(None)) | {attention[0]: Zero(extras)}, muted_mlp


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))


def _as_returned(x: Tensor, extras: int | None) -> Any:
    return x if extras is None else (x,) + (None,) * extras
