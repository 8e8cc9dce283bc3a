"""A row of the table of vision-language models: where the visual tokens are and how they lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Layout = Literal["square", "grid", "sizes", "packed", "tiles", "runs", "latents"]


@dataclass(frozen=True)
class LanguageRow:
    """One vision-language model of transformers.

    Classes are dotted names, so that no host library is imported by a table.

    Attributes:
        outer: the class that is given ``input_ids`` and calls the language model, without the
            head: ``LlavaModel``.
        heads: classes with the head on top, which have ``generate``.
        language: the child of ``outer`` that is the language model.
        tokens: modality to the name of the placeholder's id in the configuration.
        layout: how the tokens of one image lie in the picture.

            ``"square"``: rows of a square, each image an entry of the projected features.
            ``"grid"``: ``image_grid_thw`` says frames, height and width in patches.
            ``"sizes"``: ``image_sizes`` says height and width in pixels.
            ``"packed"``: a thumbnail, then tiles side by side with a newline token after each
            row, as ``pack_image_features`` of the host lays them out.
            ``"tiles"``: several squares that follow each other without a gap are one image.
            ``"runs"``: squares with text in between; each is an image of its own.
            ``"latents"``: queries of a resampler, which lie nowhere; with text in between.
        patch: for ``"grid"`` and ``"sizes"``, the dotted attributes of ``outer`` whose product is
            the side of one token, in patches or in pixels.
        towers: short class names of the vision encoders that its checkpoints come with, for the
            documentation: `turbovlm.Merge` works in these.
        example: a model of this row, likewise.
    """

    outer: str
    heads: tuple[str, ...]
    language: str = "language_model"
    tokens: dict[str, str] = field(default_factory=lambda: {"image": "image_token_id"})
    layout: Layout = "square"
    patch: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()
    example: str = ""


@dataclass(frozen=True)
class LanguageRefusal:
    """A vision-language model whose language model cannot be given fewer visual tokens.

    Attributes:
        reason: why, as the end of a sentence "... is refused: ".
        names: dotted class names.
    """

    reason: str
    names: tuple[str, ...]
