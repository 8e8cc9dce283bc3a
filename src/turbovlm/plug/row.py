"""A host row: everything turbovlm needs to know about one architecture, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

Guide = Literal["cls", "mean"]
Modality = Literal["image", "text", "audio"]


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
        post_norm: the children named above add the residual and normalise it themselves, as
            BERT's do: ``norm(x + f(x))``. A muted child then passes the residual on.
        modality: what the tokens are. Text towers are patched only when the model given to
            `apply` holds no image or audio tower: a caption is short, and its r is another.
        prefix: number of leading tokens that are never merged (cls, distillation, registers),
            or the dotted name of the tower's attribute that holds it, or several that add up.
        guide: what supplies the semantic value: the ``"cls"`` token (position 0), or the
            ``"mean"`` query of all tokens where a model has no cls.
        cls: tower attribute that is None when this very model has no cls token; then the guide
            is ``"mean"``.
        pool: tower attribute that names the pooling; anything but ``"token"`` or ``""`` reads
            the patch tokens, so that the full count is restored after the last block.
        restore: always restore the full count after the last block, because what reads the
            tower averages, attends over or counts the patch tokens.
        follow: block arguments laid out along the tokens in their last but one dimension
            (rotary tables, one tensor or a tuple): each block gets the rows of its survivors.
        tables: block attribute with the width of the (cos, sin) tables that `follow` names,
            where the block does not run without them.
        mask: block argument that masks padding, ``(B, 1, 1 or N, N)``, bool or additive. Padding
            becomes tokens of size 0, which leave first, and no mask is needed any more.
        aside: block arguments that have nothing to do with the tokens (cross-attention's).
        causal: tower attribute that is true when this very model is a causal decoder, in which
            nothing may be merged.
        example: a model of this row, for the documentation.
    """

    block: str
    towers: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    post_norm: bool = False
    modality: Modality = "image"
    prefix: int | str | tuple[int | str, ...] = 1
    guide: Guide = "cls"
    cls: str | None = None
    pool: str | None = None
    restore: bool = False
    follow: tuple[str, ...] = ()
    tables: str | None = None
    mask: str | None = None
    aside: tuple[str, ...] = ()
    causal: str | None = None
    example: str = ""

    def prefix_of(self, tower: nn.Module) -> int:
        """Number of prefix tokens of this tower."""
        parts = self.prefix if isinstance(self.prefix, tuple) else (self.prefix,)
        return sum(p if isinstance(p, int) else int(attribute(tower, p)) for p in parts)

    def guide_of(self, tower: nn.Module) -> Guide:
        """What supplies this tower's semantic value."""
        if self.cls is not None and attribute(tower, self.cls) is None:
            return "mean"
        return self.guide

    def restores(self, tower: nn.Module) -> bool:
        """Whether what reads this tower needs all tokens back."""
        if self.pool is not None:
            return attribute(tower, self.pool) not in ("token", "")
        return self.restore

    def is_causal(self, tower: nn.Module) -> bool:
        """Whether this tower is a causal decoder."""
        return self.causal is not None and bool(attribute(tower, self.causal))


@dataclass(frozen=True)
class Refusal:
    """Blocks or encoders that are known and cannot be patched.

    Attributes:
        reason: why, as the end of a sentence "... cannot be patched: ".
        names: dotted class names.
    """

    reason: str
    names: tuple[str, ...]


def is_named(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether the module's class, or one it derives from, has one of these dotted names."""
    return any(f"{c.__module__}.{c.__qualname__}" in names for c in type(module).__mro__)


def attribute(module: Any, path: str) -> Any:
    """``module.a.b`` for the path ``"a.b"``."""
    for name in path.split("."):
        module = getattr(module, name)
    return module
