"""Which visual tokens of an image stayed, and who stands for the others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from turbovlm.notebook import html_table


@dataclass(frozen=True)
class ImageTrace:
    """One image of the last prompt.

    Attributes:
        sample: row of the batch.
        kept: ``(K,)`` indices among the image's tokens that stayed, ascending; newline tokens
            among them.
        owner: ``(n,)`` for each token of the image, the index of the kept one most similar to it.
        merged: ``(n,)`` bool: averaged into its owner. The others were dropped.
        column: ``(n,)`` where each token stood in the prompt.
        place: ``(n, 3)`` frame (or tile), height and width of each token's centre, 0 to 1; None
            where the tokens lie nowhere.
    """

    sample: int
    kept: Tensor
    owner: Tensor
    merged: Tensor
    column: Tensor
    place: Tensor | None


@dataclass(frozen=True)
class VisualTrace:
    """The last prompt with images.

    Attributes:
        before: tokens of the prompt, padding included.
        after: tokens that the language model got.
        images: one entry an image that lost tokens, in the order of the batch.
    """

    before: int
    after: int
    images: tuple[ImageTrace, ...]

    def _repr_html_(self) -> str:
        """In a notebook: what is left of each image."""
        rows = [
            (number, image.sample, len(image.owner), len(image.kept), int(image.merged.sum()))
            for number, image in enumerate(self.images, 1)
        ]
        heads = ("image", "row of the batch", "visual tokens", "kept", "merged")
        note = f"a prompt of {self.before} tokens became one of {self.after}"
        return html_table("VisualTrace", heads, rows, note)
