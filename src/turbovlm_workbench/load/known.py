"""Run a model without weights on inputs whose values are known.

A model on the meta device computes shapes alone. Some hosts read values on their way: the grid of
an image says where its windows end, and empty pictures are sorted out. Under `known_values` such
tensors are made and stay on the CPU; what touches a weight has a shape alone from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from turbovlm.maths import constants

aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
NEW = (aten.new_empty.default, aten.new_full.default, aten.new_ones.default, aten.new_zeros.default)
CPU, META = torch.device("cpu"), torch.device("meta")


@contextmanager
def known_values() -> Iterator[None]:
    """Keep what needs no weight on the CPU while a model on the meta device runs."""
    constants.clear_constants()
    try:
        with _Literals(), _Mixed():
            yield
    finally:
        # those of the meta device have values now, which others do not expect
        constants.clear_constants()


class _Literals(TorchFunctionMode):
    """``torch.tensor([...], device="meta")`` would drop the values before an operator is called."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_meta(given.get("device")):
            given["device"] = CPU
        return func(*args, **given)


class _Mixed(TorchDispatchMode):
    """Operators on CPU tensors run there; with one on the meta device among them, all go there."""

    def __init__(self) -> None:
        super().__init__()
        self._overwritten: dict[int, Tensor] = {}  # storages whose values are not known any more

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, given)) if isinstance(x, Tensor)]
        known = all(self._known(x) for x in tensors)
        if func in NEW:  # their values do not depend on the tensor
            args, known = (torch.empty(0, dtype=args[0].dtype), *args[1:]), True
        if given.get("device") is not None:
            given["device"] = CPU if known else META
        if known or all(x.is_meta for x in tensors):
            return func(*args, **given)
        target = args[0] if func._schema.is_mutable else None
        if isinstance(target, Tensor) and not target.is_meta:
            self._overwritten[_storage(target)] = target
        if func in INDEXING:
            positions = [part for index in args[1] for part in _positions(index)]
            args = (args[0], positions, *args[2:])
        args, given = tree_map_only(Tensor, lambda x: x if x.is_meta else x.to(META), (args, given))
        result = func(*args, **given)
        return result if target is None else target

    def _known(self, x: Tensor) -> bool:
        return not x.is_meta and _storage(x) not in self._overwritten


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _positions(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask as the positions that it marks: how many there are is known only on the CPU."""
    if index is None or index.is_meta or index.dtype is not torch.bool:
        return (index,)
    return index.nonzero(as_tuple=True)


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device) == META
