"""A host row: everything turbovlm needs to know about one architecture, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import nn

from turbovlm.errors import ConfigError
from turbovlm.plug.attention import Guide
from turbovlm.plug.names import attribute

Modality = Literal["image", "text", "audio"]
Reads = Literal["all", "tokens", "pooled", "cls"]
"""What reads the output of an encoder makes of it:

- ``"all"``: it counts, averages or lays out the tokens, or is not known: every position gets the
  value of the token that stands for it, after the last block.
- ``"tokens"``: it attends over the tokens (a decoder's cross-attention), however many they are.
- ``"pooled"``: it reads the cls token, and passes all tokens on to its caller.
- ``"cls"``: it reads prefix tokens alone.
"""


@dataclass(frozen=True)
class Packing:
    """How a tower lays the patches of all images in one sequence, ``(N, C)`` or ``(1, N, C)``.

    Attributes:
        bounds: block argument ``(segments + 1,)``: where the segments begin and end within which
            the block attends. None where it gets a mask instead and attends within whole images.
        grid: tower argument ``(images, 3)``: frames, height and width of each image in patches. A
            frame is an image of its own. With ``side``, ``(images, 2)`` height and width in pixels.
        side: tower attribute with the side of a patch, where `grid` counts pixels.
        reads: tower attribute that lists the blocks after which the tower itself reads all
            positions (deepstack); None where there are none.
        whole: tower attribute that lists the blocks that attend within whole images, while the
            others attend within windows; None where all do.
        cell: tower attribute with the side, in patches, of the square cells whose patches follow
            one another; None where the patches of an image lie row by row.
        window: tower attribute with the side, in pixels, of the square windows whose cells follow
            one another; None where the cells of an image lie row by row.
        patch: tower attribute with the side of a patch, where there are windows.
    """

    bounds: str | None = "cu_seqlens"
    grid: str = "grid_thw"
    side: str | None = None
    reads: str | None = None
    whole: str | None = None
    cell: str | None = "spatial_merge_size"
    window: str | None = None
    patch: str = "patch_size"


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
        mlp_adds: the children of the MLP branch add the residual themselves, as VideoMAE's do:
            ``output(mlp(norm(x)), x)``. Each of them then passes on what it gets first, so the
            norm must be among them.
        modality: what the tokens are. Text towers are patched only when the model given to
            `apply` holds no image or audio tower: a caption is short, and needs a smaller r.
        prefix: number of leading tokens that are never merged (cls, distillation, registers),
            or the dotted name of the tower's attribute that holds it, or several that add up.
        guide: what supplies the semantic value: the ``"cls"`` token (position 0), or the
            ``"mean"`` query of all tokens where a model has no cls.
        cls: tower attribute that is None when this very model has no cls token; then the guide
            is ``"mean"``.
        readers: by dotted class name, what models that hold the tower read of it. A class of
            your own may say so in an attribute ``turbovlm_reads`` instead.
        reads: what the tower's own forward reads, where no reader is known around it.
        pool: tower attribute that names the pooling of its own forward: ``"token"`` reads cls
            alone, and `reads` says nothing then.
        entries: methods of the tower beside ``forward`` through which its blocks run in order.
            Called any other way, every block gives all positions back.
        follow: block arguments laid out along the tokens in their last but one dimension
            (rotary tables, one tensor or a tuple): each block gets the rows of its survivors.
        tables: block attribute with the width of the (cos, sin) tables that `follow` names,
            where the block does not run without them.
        mask: block argument that masks padding, ``(B, 1, 1 or N, N)``, bool or additive. Padding
            becomes tokens of size 0, which leave first, and no mask is needed any more.
        padding: arguments of the tower that mark padding, laid out ``(B, N)`` or ``(B, h, w)``:
            what the block's mask is then made of. Without one, only a bool mask
            ``(B or 1, 1, 1, N)`` is known to mean padding.
        aside: block arguments that have nothing to do with the tokens (cross-attention's).
        causal: tower attribute that is true when this very model is a causal decoder, in which
            nothing may be merged.
        decodes: tower argument that makes a single call causal.
        packed: how the tower packs its images in one sequence, where it does.
        example: a model of this row, for the documentation.

    Raises:
        ConfigError: for a field that cannot mean anything.
    """

    block: str
    towers: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    post_norm: bool = False
    mlp_adds: bool = False
    modality: Modality = "image"
    prefix: int | str | tuple[int | str, ...] = 1
    guide: Guide = "cls"
    cls: str | None = None
    readers: Mapping[str, Reads] = field(default_factory=dict)
    reads: Reads = "all"
    pool: str | None = None
    entries: tuple[str, ...] = ()
    follow: tuple[str, ...] = ()
    tables: str | None = None
    mask: str | None = None
    padding: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    causal: str | None = None
    decodes: str | None = None
    packed: Packing | None = None
    example: str = ""

    def __post_init__(self) -> None:
        for name in ("towers", "attention", "mlp", "follow", "aside", "padding", "entries"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(v, str) for v in value):
                raise ConfigError(f"Row.{name} must be a tuple of names, not {value!r}")
        for name in ("towers", "attention", "mlp"):
            if not getattr(self, name):
                raise ConfigError(f"Row.{name} must name at least one")
        if "." not in self.block:
            raise ConfigError(f"Row.block must be a dotted class name, not {self.block!r}")
        for name, kind in (("guide", Guide), ("modality", Modality), ("reads", Reads)):
            if getattr(self, name) not in get_args(kind):
                allowed = ", ".join(get_args(kind))
                raise ConfigError(
                    f"Row.{name} must be one of {allowed}, not {getattr(self, name)!r}"
                )
        for reader, reads in self.readers.items():
            if reads not in get_args(Reads):
                raise ConfigError(
                    f"Row.readers[{reader!r}] must be one of {', '.join(get_args(Reads))}, "
                    f"not {reads!r}"
                )

    def prefix_of(self, tower: nn.Module) -> int:
        """Number of prefix tokens of this tower."""
        parts = self.prefix if isinstance(self.prefix, tuple) else (self.prefix,)
        return sum(p if isinstance(p, int) else int(attribute(tower, p)) for p in parts)

    def guide_of(self, tower: nn.Module) -> Guide:
        """What supplies this tower's semantic value."""
        if self.cls is not None and attribute(tower, self.cls) is None:
            return "mean"
        return self.guide

    def own_reads(self, tower: nn.Module) -> Reads:
        """What this tower's own forward reads."""
        if self.pool is not None:
            return "cls" if attribute(tower, self.pool) == "token" else "all"
        return self.reads

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
