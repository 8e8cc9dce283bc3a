"""Class swap: a block becomes a subclass of itself, in place, and back."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

from torch import nn

from turbovlm.errors import UnsuitableBlock
from turbovlm.plug.block import Site, TurboBlock
from turbovlm.plug.state import Patch


def install(block: nn.Module, patch: Patch, layer: int) -> None:
    """Turn ``block`` into a `TurboBlock` of its own class; parameters and names stay.

    Raises:
        UnsuitableBlock: if something replaced the block's forward, so that a swap has no effect.
    """
    host = type(block)
    _, *names = inspect.signature(host.forward).parameters
    _become(block, _turbo_class(host))
    # not a submodule and not a parameter: state_dict and named_modules stay the host's
    block.__dict__["turbo_site"] = Site(patch, layer, host, tuple(names))


def uninstall(block: nn.Module) -> None:
    """Exact inverse of `install`."""
    site: Site = block.__dict__["turbo_site"]
    _become(block, site.host)
    del block.__dict__["turbo_site"]


@functools.cache
def _turbo_class(host: type[nn.Module]) -> type[nn.Module]:
    body = {"__module__": host.__module__, "__reduce_ex__": _reduce}
    return type(host.__name__, (TurboBlock, host), body)


def _become(block: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class; a forward stored on the instance (accelerate's hooks do) follows."""
    held = {k: v for k in ("forward", "_old_forward") if (v := vars(block).get(k)) is not None}
    if "forward" in held and "_old_forward" not in held:
        raise UnsuitableBlock(
            f"{type(block).__name__}.forward was replaced on the instance by another plug-in: "
            "remove that one first"
        )
    for name, function in held.items():
        if getattr(function, "__func__", None) is type(block).forward:
            vars(block)[name] = types.MethodType(cls.forward, block)
    block.__class__ = cls


def _reduce(block: Any, protocol: Any) -> Any:
    """Pickle and deepcopy by the host's class, which can be imported; the swap is redone."""
    return _rebuild, (block.turbo_site.host,), block.__dict__


def _rebuild(host: type[nn.Module]) -> nn.Module:
    block = host.__new__(host)
    block.__class__ = _turbo_class(host)
    return block
