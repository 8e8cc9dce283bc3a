"""A host row: everything turbovlm needs to know about one architecture, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

Guide = Literal["cls", "mean"]


@dataclass(frozen=True)
class Row:
    """One transformer block class of one host library.

    Every block is ``x + f(x)`` followed by ``x + g(x)``; the row names the children that make
    up ``f`` and ``g``. Classes are dotted names, so that no host library is imported by a table.

    Attributes:
        block: dotted class name of the block.
        towers: dotted class names of the encoders inside which the block is patched. A block
            class alone is not enough: CLIP's text encoder uses the same one.
        attention: children of the attention branch, the attention module first, its norm after.
        mlp: children of the MLP branch.
        prefix: number of leading tokens that are never merged (cls, distillation, registers),
            or the dotted name of the tower's attribute that holds it.
        guide: what supplies the semantic value: the ``"cls"`` token (position 0), or the
            ``"mean"`` query of all tokens where a model has no cls.
        cls: tower attribute that is None when this very model has no cls token; then the guide
            is ``"mean"``.
        pool: tower attribute that names the pooling; anything but ``"token"`` or ``""`` reads
            the patch tokens, so that the full count is restored after the last block.
        restore: always restore the full count after the last block, because what reads the
            tower averages, attends over or counts the patch tokens.
        example: a model of this row, for the documentation.
    """

    block: str
    towers: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    prefix: int | str = 1
    guide: Guide = "cls"
    cls: str | None = None
    pool: str | None = None
    restore: bool = False
    example: str = ""

    def prefix_of(self, tower: nn.Module) -> int:
        """Number of prefix tokens of this tower."""
        if isinstance(self.prefix, int):
            return self.prefix
        return int(_attribute(tower, self.prefix))

    def guide_of(self, tower: nn.Module) -> Guide:
        """What supplies this tower's semantic value."""
        if self.cls is not None and _attribute(tower, self.cls) is None:
            return "mean"
        return self.guide

    def restores(self, tower: nn.Module) -> bool:
        """Whether what reads this tower needs all tokens back."""
        if self.pool is not None:
            return _attribute(tower, self.pool) not in ("token", "")
        return self.restore


def is_named(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether the module's class, or one it derives from, has one of these dotted names."""
    return any(f"{c.__module__}.{c.__qualname__}" in names for c in type(module).__mro__)


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module
