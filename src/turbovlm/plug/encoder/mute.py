"""Stand-ins for the children of a branch that is muted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbovlm.plug.encoder.row import Row

_ADDING = frozenset(
    (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__)
)
_SCALING = frozenset((Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__))


class Nothing(Tensor):
    """Zeros ``(B, 1, 1)`` or ``(1, 1)`` that are never added: the sum is the other operand itself.

    A residual add of zeros is a launch, and a pass over all tokens. Scaled or dropped out they are
    what they were; every other function gets them as plain zeros.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer a sum, a product or a dropout, and run anything else on the zeros."""
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.dropout:
                return args[0]
            if not kwargs and len(args) == 2:
                zeros, other = args if isinstance(args[0], cls) else args[::-1]
                if func in _SCALING and isinstance(zeros, cls):
                    return zeros
                if func in _ADDING and type(other) is Tensor and _broadcasts(zeros, other):
                    return other
            return func(*args, **kwargs or {})


def _broadcasts(zeros: Tensor, x: Tensor) -> bool:
    """Whether the sum would have the shape and the type of ``x``."""
    return (
        x.dtype == zeros.dtype
        and x.dim() == zeros.dim()
        and (x.dim() == 2 or x.shape[0] == zeros.shape[0])
    )


class Zero(nn.Module):
    """A zero that broadcasts over the residual stream, in the form the real child returns.

    Args:
        extras: None for a child that returns a tensor; else how many values beside the tensor
            are in the tuple that it returns (attention weights, usually).
    """

    def __init__(self, extras: int | None) -> None:
        super().__init__()
        self.extras = extras
        self._made: dict[tuple[Any, ...], Tensor] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """``(B, 1, 1)`` zeros, ``(1, 1)`` for tokens ``(N, C)``, alone or with as many None as
        there are extras.
        """
        x = _first(args, kwargs)
        return _as_returned(self._zeros(x), self.extras)

    def _zeros(self, x: Tensor) -> Tensor:
        if isinstance(x, Nothing):
            return x
        shape = (1, 1) if x.dim() == 2 else (x.shape[0], 1, 1)
        if type(x) is not Tensor or torch.compiler.is_compiling():
            return x.new_zeros(shape)
        # made once: on a GPU filling three numbers is a launch like any other
        key = (shape, x.dtype, x.device, torch.is_inference_mode_enabled())
        if key not in self._made:
            self._made[key] = x.new_zeros(shape).as_subclass(Nothing)
        return self._made[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}


class Unchanged(nn.Module):
    """The first tensor that the child gets, as it came.

    It stands for a norm inside a muted branch, whose output nothing reads, and for a child that
    adds the residual and normalises (post-norm): BERT's MLP output gets the branch before the
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


class Muted:
    """What replaces the children of one branch.

    Attributes:
        modules: by name, for a compiler.
        calls: the same as plain functions, which cost less to call.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = dict(modules)
        self.calls = {name: module.forward for name, module in modules.items()}

    def __reduce__(self) -> Any:
        return Muted, (self.modules,)


def muted_branches(row: Row, block: nn.Module, extras: int | None) -> tuple[Muted, Muted]:
    """The stand-ins for the attention branch and for the MLP branch.

    Args:
        row: names their children.
        block: one block of the kind.
        extras: what the attention module returns beside its tensor, see `Zero`. A second one of
            its class (cross-attention) returns the same.
    """
    kind = type(getattr(block, row.attention[0]))
    attention = {
        n: (Unchanged if row.post_norm else Zero)(extras)
        if type(getattr(block, n, None)) is kind
        else _stand_in(block, n, row.post_norm)
        for n in row.attention
    }
    mlp = {n: _stand_in(block, n, row.post_norm or row.mlp_adds) for n in row.mlp}
    return Muted(attention), Muted(mlp)


def _stand_in(block: nn.Module, name: str, adds: bool) -> nn.Module:
    """For a child that ``adds`` the residual itself, or one that does not."""
    norm = "Norm" in type(getattr(block, name, None)).__name__
    return Unchanged(None) if adds or norm else Zero(None)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))


def _as_returned(x: Tensor, extras: int | None) -> Any:
    return x if extras is None else (x,) + (None,) * extras
