"""A stand-alone copy of a block, for trials: without hooks, with random weights.

The user's block is never run: its hooks would see random tokens, weights may be elsewhere
(offloaded, sharded), and weights that are zero at first would hide a branch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turbovlm.plug.swap import site_of

NOISE = 0.1
_FORGET = ("forward", "_old_forward", "_hf_hook", "_diffusers_hook", "_compiled_call_impl")
"""What plug-ins leave on a module's instance."""


def twin_of(block: nn.Module, host: type[nn.Module], device: torch.device) -> nn.Module:
    """A copy of ``block`` in evaluation mode whose floating weights are noise on ``device``.

    Args:
        block: any block; it is not changed.
        host: the class that the copy gets.
        device: where it computes; for weights on the meta device this must be another one.
    """
    twin = _bare(block, device, torch.Generator().manual_seed(0))
    twin.__class__ = host
    return twin


def device_of(block: nn.Module) -> torch.device:
    """Where the block's weights are; the CPU where they are on the meta device."""
    for weight in (*block.parameters(), *block.buffers()):
        if not weight.is_meta:
            return weight.device
    return torch.device("cpu")


def _bare(module: nn.Module, device: torch.device, generator: torch.Generator) -> nn.Module:
    cls = type(module)
    twin = cls.__new__(cls) if cls.__new__ is object.__new__ else object.__new__(cls)
    kept = {
        k: v
        for k, v in module.__dict__.items()
        if k not in _FORGET and not k.endswith(("_hooks", "_with_kwargs", "_always_called"))
    }
    fresh = nn.Module()
    twin.__dict__ = {**fresh.__dict__, **kept}
    twin.__dict__.pop("turbo_site", None)
    twin.__dict__["training"] = False
    twin.__dict__["_parameters"] = {
        name: None if weight is None else _noise(weight, device, generator)
        for name, weight in module._parameters.items()
    }
    twin.__dict__["_buffers"] = {
        name: None if value is None else _value(value, device)
        for name, value in module._buffers.items()
    }
    twin.__dict__["_modules"] = {
        name: None if child is None else _bare(child, device, generator)
        for name, child in module._modules.items()
    }
    return twin


def _noise(weight: Tensor, device: torch.device, generator: torch.Generator) -> nn.Parameter:
    plain = type(weight) in (nn.Parameter, Tensor) or hasattr(weight, "device_mesh")
    if not plain or not weight.is_floating_point():
        return weight  # type: ignore[return-value]  # quantized: it computes as it is
    drawn = torch.randn(weight.shape, generator=generator, device="cpu") * NOISE
    return nn.Parameter(drawn.to(device, weight.dtype), requires_grad=False)


def _value(value: Tensor, device: torch.device) -> Tensor:
    return torch.zeros(value.shape, dtype=value.dtype, device=device) if value.is_meta else value


def probe(block: nn.Module, tokens: int) -> Tensor | None:
    """Random tokens ``(2, tokens, C)`` in the width, type and place of the block's norm.

    None for a block that has neither a norm nor a linear layer.
    """
    if site_of(block) is not None:
        raise ValueError("probe a twin, not a patched block")
    for module in block.modules():
        shape = getattr(module, "normalized_shape", None)
        width = shape[-1] if shape is not None else getattr(module, "in_features", None)
        if width is None and type(module).__name__.endswith("RMSNorm"):
            weight = getattr(module, "weight", None)
            width = None if weight is None else weight.shape[-1]
        if width is not None:
            like = next(p for p in block.parameters() if p.is_floating_point())
            noise = torch.randn(
                2, tokens, width, generator=torch.Generator().manual_seed(0), device="cpu"
            )
            return noise.to(like.device, like.dtype)
    return None
