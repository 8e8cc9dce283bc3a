"""A language model in few bits: rounded to the nearest, or by GPTQ from what it reads.

The algorithm and the packed layers are those of GPTQModel (`pip install gptqmodel`), which runs
on a CPU. It quantizes layer by layer from the inputs of calibration; those of a vision-language
model are visual tokens between words, so the forward that shows them is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from turbovlm.errors import require


@dataclass(frozen=True)
class Grid:
    """Symmetric integers of ``bits``, with one scale for each row of a weight."""

    bits: int

    def scales(self, weight: Tensor) -> Tensor:
        """``(rows, 1)``: the range of each row over the steps between its ends."""
        return weight.abs().amax(1, keepdim=True) * 2 / (2**self.bits - 1)


class Quantized(NamedTuple):
    """Weights on a grid, ``(rows, columns)`` in floating point, and their scales ``(rows, 1)``."""

    weight: Tensor
    scale: Tensor


Quantizer = Callable[[nn.Linear, list[Tensor], Grid], Quantized]
"""A linear layer and its inputs ``(B, N, columns)`` in calibration to weights on the grid."""


def nearest(layer: nn.Linear, inputs: list[Tensor], grid: Grid) -> Quantized:
    """Every weight to the nearest point; the inputs do not matter."""
    scale, half = grid.scales(layer.weight), 2 ** (grid.bits - 1)
    steps = (layer.weight / scale).round().clamp(-half, half - 1)
    return Quantized(steps * scale, scale)


def gptq(layer: nn.Linear, inputs: list[Tensor], grid: Grid) -> Quantized:
    """Column by column, the error of each made up for by the columns that follow."""
    config = require("gptqmodel.quantization", "gptq").QuantizeConfig(
        bits=grid.bits, group_size=-1, desc_act=False, act_group_aware=False
    )
    run = require("gptqmodel.quantization.gptq", "gptq").GPTQ(layer, config)
    run.quantizer.configure(perchannel=True)
    for x in inputs:
        run.add_batch(x, layer(x))
    weight, scale, *_ = run.quantize()
    run.free()
    return Quantized(weight, scale)


def packed(layer: nn.Linear, found: Quantized, grid: Grid) -> nn.Module:
    """GPTQModel's layer for any device: integers and float16 scales, unpacked in each forward."""
    layers = require("gptqmodel.nn_modules.qlinear.torch", "gptq")
    with_weights = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    with_weights.weight.data = found.weight
    if layer.bias is not None:
        with_weights.bias.data = layer.bias.data
    result = layers.TorchLinear(
        bits=grid.bits,
        group_size=-1,
        sym=True,
        desc_act=False,
        in_features=layer.in_features,
        out_features=layer.out_features,
        bias=layer.bias is not None,
    )
    zero = torch.full_like(found.scale, 2 ** (grid.bits - 1))
    index = torch.zeros(layer.in_features, dtype=torch.int32)
    result.pack_original(with_weights, found.scale, zero, index)
    return result.eval()


@torch.no_grad()
def quantize_layers(
    layers: nn.ModuleList,
    show: Callable[[], None],
    quantizer: Quantizer,
    grid: Grid,
) -> None:
    """Put packed layers in the place of all linear layers, in place, one block after another.

    Args:
        layers: blocks of a language model, in the order in which they run.
        show: runs the model on the calibration inputs; what a block reads then has come through
            the quantized blocks before it.
        quantizer: `gptq` or `nearest`.
        grid: of the weights.
    """
    for block in layers:
        with _inputs(block) as seen:
            show()
        for name, inputs in seen.items():
            layer: Any = block.get_submodule(name)
            top, _, last = name.rpartition(".")
            setattr(
                block.get_submodule(top), last, packed(layer, quantizer(layer, inputs, grid), grid)
            )


@contextmanager
def _inputs(block: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """What the linear layers of a block read while this is open, by name."""
    seen: dict[str, list[Tensor]] = {
        name: [] for name, module in block.named_modules() if isinstance(module, nn.Linear)
    }
    hooks = [
        block.get_submodule(name).register_forward_hook(
            lambda _, given, __, rows=rows: rows.append(given[0])
        )
        for name, rows in seen.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def weight_bytes(module: nn.Module) -> int:
    """Of parameters and buffers, packed ones too; shared ones count once."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(x.untyped_storage().nbytes() for x in {x.data_ptr(): x for x in tensors}.values())
