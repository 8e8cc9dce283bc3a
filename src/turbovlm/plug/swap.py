"""Class swap: a module becomes a subclass of itself, in place, and back."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from turbovlm.errors import AlreadyApplied, UnsuitableBlock
from turbovlm.plug.state import Patch

_KEY = "turbo_site"


class Site(Protocol):
    """What a swapped module knows of itself, as its ``turbo_site``."""

    @property
    def patch(self) -> Patch[Any, Any, Any] | None:
        """The patch that it belongs to; None for a swap that `turbovlm.remove` leaves alone."""
        ...

    @property
    def host(self) -> type[Any]:
        """The class that the module had."""
        ...


@dataclass(frozen=True)
class Swap:
    """One module that is to change its class.

    Attributes:
        module: in the user's model; or a pipeline that holds models.
        mixin: goes in front of its class; ``super()`` is the host's own.
        site: what the mixin finds as ``self.turbo_site``.
        entries: methods beside ``forward`` that the mixin's ``turbo_enter(name, ...)`` wraps.
    """

    module: Any
    mixin: type[Any]
    site: Site
    entries: tuple[str, ...] = ()


def site_of(module: object) -> Any:
    """The site of a swapped module, or None."""
    return vars(module).get(_KEY) if hasattr(module, "__dict__") else None


def patched(model: nn.Module) -> Iterator[nn.Module]:
    """Every module inside ``model`` that belongs to a patch."""
    return (m for m in model.modules() if getattr(site_of(m), "patch", None) is not None)


def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what a method of a host takes, after ``self``."""
    _, *names = inspect.signature(function).parameters
    return tuple(names)


def install(swaps: Sequence[Swap]) -> None:
    """Install all swaps or none: on any error every module is as it was.

    Parameters and names stay, so `state_dict` and `named_modules` are the host's. Where all are
    in place already, with the same setting, nothing is left to do.

    Raises:
        AlreadyApplied: if some are swapped already, or with another setting.
        UnsuitableBlock: if something replaced a module's forward, so that a swap has no effect.
    """
    if swaps and all(is_same(swap) for swap in swaps):
        return
    for swap in swaps:
        if site_of(swap.module) is not None:
            raise AlreadyApplied("this model is patched already: turbovlm.remove(model) first")
        _check_forward(swap)
    done: list[Any] = []
    try:
        for swap in swaps:
            done.append(swap.module)
            swap.module.__dict__[_KEY] = swap.site
            _become(swap.module, _turbo_class(swap.mixin, swap.site.host, swap.entries))
    except BaseException:
        for module in done:
            uninstall(module)
        raise


def uninstall(module: Any) -> None:
    """Inverse of `install` for one module: our class goes, wherever it stands in the order.

    What other plug-ins put on top stays: classes derived from ours are made anew without it, and
    forwards that call ours find the host's.
    """
    _become(module, class_without(type(module)))
    module.__dict__.pop(_KEY, None)


@contextmanager
def suspended(model: nn.Module) -> Iterator[None]:
    """Every patched module has its host's own class while the context is open.

    For what looks classes up by identity. A forward that it hooks meanwhile is ours afterwards.
    """
    held = [(module, type(module), site_of(module)) for module in patched(model)]
    for module, _, _ in held:
        uninstall(module)
    try:
        yield
    finally:
        for module, cls, site in held:
            vars(module)[_KEY] = site
            _become(module, cls)


@functools.cache
def _turbo_class(mixin: type[Any], host: type[Any], entries: tuple[str, ...]) -> type[Any]:
    body: dict[str, Any] = {
        "__module__": host.__module__,
        "__qualname__": host.__qualname__,
        "__doc__": host.__doc__,
        "__reduce_ex__": _reduce,
        "turbo_recipe": (mixin, host, entries),
    }
    body |= {name: _entry(name, getattr(host, name)) for name in entries if hasattr(host, name)}
    return type(host.__name__, (mixin, host), body)


def is_same(swap: Swap) -> bool:
    """Whether the module is patched already, with an equal setting."""
    site = site_of(swap.module)
    if site is None or site.patch is None or swap.site.patch is None:
        return False
    return site.patch.config == swap.site.patch.config


def _entry(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The method ``name`` of a host, through the mixin's ``turbo_enter``."""

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if site_of(self) is None:  # removed, or made anew from a patched model's class
            return function(self, *args, **kwargs)
        return self.turbo_enter(name, function, args, kwargs)

    return method


def _check_forward(swap: Swap) -> None:
    module = swap.module
    if "forward" not in vars(module) or "_old_forward" in vars(module):
        return
    # the class's own; or ours, put back by a plug-in that found it there before it was removed
    ours = _turbo_class(swap.mixin, swap.site.host, swap.entries)
    classes = (type(module), swap.mixin, ours)
    if any(_is_bound(vars(o)[n], *classes) for o, n in _kept_forwards(module)):
        return
    raise UnsuitableBlock(
        f"{type(module).__name__}.forward was replaced on the instance by another plug-in: take "
        "that one off, turbovlm.apply first, then put it on again"
    )


def _kept_forwards(module: Any) -> Iterator[tuple[Any, str]]:
    """Where plug-ins keep a bound forward: objects and the names of their attributes.

    accelerate keeps it on the instance, the hooks of diffusers in a registry.
    """
    registry = vars(module).get("_diffusers_hook")
    for holder in (module, *getattr(registry, "_fn_refs", ())):
        for name in ("forward", "_old_forward", "original_forward"):
            if name in vars(holder):
                yield holder, name


def _is_bound(function: Any, *classes: type[Any]) -> bool:
    """Whether it is the forward of one of these classes, bound: as good as not replaced at all."""
    return any(getattr(function, "__func__", None) is cls.forward for cls in classes)


def _become(module: Any, cls: type[Any]) -> None:
    """Change the class; a bound forward that a plug-in keeps follows."""
    for holder, name in _kept_forwards(module):
        if _is_bound(vars(holder)[name], type(module)):
            vars(holder)[name] = types.MethodType(cls.forward, module)
    module.__class__ = cls


def plain_class(module: Any) -> type[Any]:
    """The module's class without ours: what was made from a patched model's class has it too."""
    return class_without(type(module))


def host_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward of the module's class without ours, as a function of the module."""
    return site_of(module).host.forward


def unpatched_forward(
    module: nn.Module, mixin: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The host's forward of a module that holds a mixin's method but no site.

    It was removed while another plug-in kept the method, or made from a patched model's class.
    """
    order = type(module).__mro__
    after = order[order.index(mixin) + 1 :] if mixin in order else order
    return next(vars(c)["forward"] for c in after if "forward" in vars(c))(module, *args, **kwargs)


def class_without(cls: type[Any]) -> type[Any]:
    """The class as it would be without our mixin among its bases."""
    recipe = cls.__dict__.get("turbo_recipe")
    if recipe is not None:
        return recipe[1]
    bases = tuple(class_without(base) for base in cls.__bases__)
    if bases == cls.__bases__:
        return cls
    body = {
        name: value
        for name, value in vars(cls).items()
        if name not in ("__dict__", "__weakref__") and not _wraps_ours(value, cls)
    }
    meta: Any = type(cls)
    return meta(cls.__name__, bases, body)


def _wraps_ours(value: Any, cls: type[nn.Module]) -> bool:
    """Whether a member is made of one of ours: transformers wraps the forward of every subclass."""
    ours = [
        vars(part).get(name)
        for base in cls.__mro__
        if (recipe := vars(base).get("turbo_recipe")) is not None
        for part in (base, recipe[0])
        for name in ("forward", *recipe[2])
    ]
    while callable(value):
        if any(value is found for found in ours):
            return True
        value = getattr(value, "__wrapped__", None)
    return False


def _reduce(module: Any, protocol: Any) -> Any:
    """Pickle and deepcopy by the host's class, which can be imported; the swap is redone."""
    return _rebuild, module.turbo_recipe, module.__dict__


def _rebuild(mixin: type[Any], host: Any, entries: tuple[str, ...]) -> Any:
    module = host.__new__(host)
    module.__class__ = _turbo_class(mixin, host, entries)
    return module
