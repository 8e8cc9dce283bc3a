"""Multiply-adds of one forward, by the convention of the paper's tables.

The convention is fvcore's: one multiply-add is 1; linear, convolution and matrix products count,
attention products too, fused or not; LayerNorm counts 5 per element. All else is free: softmax,
activations, gathers, scatters, RMSNorm, GroupNorm and BatchNorm. The matching product of a merge
is an ordinary matrix product, so it counts. Causal attention counts in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from turbovlm.errors import InputError

aten = torch.ops.aten
ModelT = TypeVar("ModelT", bound=nn.Module)

LAYER_NORM_PER_ELEMENT = 5

# The counter reports 2 per multiply-add; every formula here does too, and `flops` halves the sum.


def _layer_norm(x: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * LAYER_NORM_PER_ELEMENT * prod(x)


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _matrix_vector(matrix: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(matrix)


def _second_is_matrix(_: Any, matrix: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(matrix)


def _matrix_matrix(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(a) * b[-1]


def _second_is_left(_: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(a) * b[-1]


# By name, since not every build of torch has every operator. The counter of torch 2.13 and 2.14
# lacks the CPU's attention kernel, and none has the products with a vector.
_FORMULAS: dict[str, Callable[..., int]] = {
    "native_layer_norm": _layer_norm,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_attention_math_for_mps": _attention,
    "mv": _matrix_vector,
    "dot": _matrix_vector,
    "vdot": _matrix_vector,
    "addmv": _second_is_matrix,
    "_int_mm": _matrix_matrix,
    "addbmm": _second_is_left,
    "_addmm_activation": _second_is_left,
}


@dataclass(frozen=True)
class Flops:
    """What one call costs.

    Attributes:
        macs: multiply-adds, by the convention of this module.
        by_op: multiply-adds of every operator that counts, largest first.
        by_module: multiply-adds of every submodule by its dotted name (a module contains its
            children), in the order of the model.
        uncounted: operators from outside torch (custom kernels) that ran without a formula:
            when this is not empty, `macs` is too low.
    """

    macs: int
    by_op: Mapping[str, int] = field(default_factory=dict)
    by_module: Mapping[str, int] = field(default_factory=dict)
    uncounted: tuple[str, ...] = ()

    @property
    def gmacs(self) -> float:
        """Multiply-adds in units of 10^9."""
        return self.macs / 1e9

    @property
    def gflops(self) -> float:
        """The paper's column "GFLOPs": it counts a multiply-add as one, so this is `gmacs`."""
        return self.gmacs

    @property
    def flops_2x(self) -> int:
        """Floating point operations where a multiply-add is two."""
        return 2 * self.macs

    def __str__(self) -> str:
        return f"{self.gflops:.3f} GFLOPs (a multiply-add counts as one)"


def flops(
    model: ModelT,
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
    *,
    call: Callable[[ModelT, Any], object] | None = None,
) -> Flops:
    """Run the model once and count its multiply-adds.

    The model runs without gradients, in eval mode and uncompiled; all three are put back. A
    model on the meta device (no weights in memory) is counted from shapes alone: its inputs are
    moved there, and where it asks whether something holds of its values (is this mask all ones, do
    placeholders and features agree), the answer is yes. A patched model is counted with its
    merging.

    Args:
        model: any module.
        inputs: one tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        call: how to run it, ``call(model, inputs)``, where the plain forward is not what you
            want to count, e.g. ``lambda m, i: m.generate(**i, max_new_tokens=10)``.

    Raises:
        InputError: if ``model`` is not a module, or ``inputs`` is none of the three.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"flops counts a torch.nn.Module, not {type(model).__name__}: give the module and "
            "run the pipeline around it with call="
        )
    model = cast(ModelT, getattr(model, "_orig_mod", model))  # what torch.compile wrapped
    if call is None:
        _check_inputs(inputs)
    if any(p.is_meta for p in model.parameters()):
        inputs = _to_meta(inputs)
    root = _Root(model, call or _forward)
    counter = FlopCounterMode(display=False, custom_mapping=_mapping())
    watch = _Watch(set(counter.flop_registry))
    with _quiet(model), counter, watch:
        root(inputs)
    by_op = {str(op): count // 2 for op, count in counter.flop_counts["Global"].items() if count}
    return Flops(
        macs=counter.get_total_flops() // 2,
        by_op=dict(sorted(by_op.items(), key=lambda item: -item[1])),
        by_module=_by_module(model, counter),
        uncounted=tuple(sorted(watch.unknown)),
    )


def _forward(model: nn.Module, inputs: Any) -> object:
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def _check_inputs(inputs: object) -> None:
    if not isinstance(inputs, Tensor | tuple | Mapping):
        raise InputError(
            f"inputs must be a tensor, a tuple of positional arguments or a mapping of keyword "
            f"arguments, not {type(inputs).__name__}: for anything else give call="
        )


def _to_meta(inputs: Any) -> Any:
    # transformers' BatchEncoding is a mapping but no dict, which tree_map would leave alone
    tree = dict(inputs) if isinstance(inputs, Mapping) else inputs
    return tree_map_only(Tensor, lambda t: t.to("meta"), tree)


def _mapping() -> dict[Any, Callable[..., int]]:
    return {getattr(aten, name): f for name, f in _FORMULAS.items() if hasattr(aten, name)}


def _by_module(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    prefix = f"{_Root.__name__}.model."
    counts = {
        name.removeprefix(prefix): sum(ops.values()) // 2
        for name, ops in counter.get_flop_counts().items()
        if name.startswith(prefix)
    }
    return {name: counts[name] for name, _ in model.named_modules() if counts.get(name)}


class _Root(nn.Module):
    """Names every submodule by its path in the model, even when ``call`` enters below the top."""

    def __init__(self, model: nn.Module, call: Callable[[Any, Any], object]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, inputs: Any) -> object:
        return self.call(self.model, inputs)


class _Watch(TorchDispatchMode):
    """Notes operators from outside torch that no formula covers; answers for tensors on meta."""

    _OWN = ("aten", "prim", "prims", "profiler", "_c10d_functional")

    def __init__(self, known: set[Any]) -> None:
        super().__init__()
        self.known, self.unknown = known, set[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = getattr(func, "_overloadpacket", func)
        if packet is aten._local_scalar_dense and args[0].is_meta and args[0].dtype is torch.bool:
            return True
        if packet not in self.known and getattr(func, "namespace", "") not in self._OWN:
            self.unknown.add(str(packet))
        return func(*args, **(kwargs or {}))


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, plain operators; everything is put back."""
    training = [module for module in model.modules() if module.training]
    # torch's counter hangs hooks on tensors that want a gradient, and a view of a parameter, such
    # as a learned query that goes into a module, wants one yet has none without a graph
    learned = [p for p in model.parameters() if p.requires_grad]
    # the fast path of nn.MultiheadAttention is one operator that the counter cannot open
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for module in training:
        module.training = False
    for parameter in learned:
        parameter.requires_grad = False
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module in training:
            module.training = True
        for parameter in learned:
            parameter.requires_grad = True
