"""Host classes, attributes and arguments by their names, so that no host library is imported."""

from __future__ import annotations

from typing import Any

from torch import nn


def is_named(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether the module's class, or one it derives from, has one of these dotted names."""
    return any(f"{c.__module__}.{c.__qualname__}" in names for c in type(module).__mro__)


def attribute(module: Any, path: str) -> Any:
    """``module.a.b`` for the path ``"a.b"``."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name; ``names`` are those of the host's method, in order."""
    return dict(zip(names, args, strict=False)) | kwargs
