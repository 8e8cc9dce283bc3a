"""Class swap: a module becomes a subclass of itself, in place, and back."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any, Protocol

from torch import nn

from turbovlm.errors import UnsuitableBlock


class Stand(Protocol):
    """Where a swapped module stands; its ``turbo_site``."""

    @property
    def host(self) -> type[nn.Module]:
        """The class that the module had."""
        ...


def parameters_of(host: type[nn.Module]) -> tuple[str, ...]:
    """Names of what the host's forward takes."""
    _, *names = inspect.signature(host.forward).parameters
    return tuple(names)


def install(module: nn.Module, mixin: type[nn.Module], site: Stand) -> None:
    """Put ``mixin`` in front of the module's own class; parameters and names stay.

    Raises:
        UnsuitableBlock: if something replaced the module's forward, so that a swap has no effect.
    """
    _become(module, _turbo_class(mixin, site.host))
    # not a submodule and not a parameter: state_dict and named_modules stay the host's
    module.__dict__["turbo_site"] = site


def uninstall(module: nn.Module) -> None:
    """Exact inverse of `install`."""
    _become(module, module.__dict__["turbo_site"].host)
    del module.__dict__["turbo_site"]


@functools.cache
def _turbo_class(mixin: type[nn.Module], host: type[nn.Module]) -> type[nn.Module]:
    body = {"__module__": host.__module__, "__reduce_ex__": _reduce, "turbo_mixin": mixin}
    return type(host.__name__, (mixin, host), body)


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
    return _rebuild, (block.turbo_mixin, block.turbo_site.host), block.__dict__


def _rebuild(mixin: type[nn.Module], host: type[nn.Module]) -> nn.Module:
    block = host.__new__(host)
    block.__class__ = _turbo_class(mixin, host)
    return block
