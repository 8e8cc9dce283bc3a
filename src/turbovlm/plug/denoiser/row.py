"""A denoiser row: what turbovlm needs to know of one transformer block of diffusion models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from turbovlm.plug.names import attribute


@dataclass(frozen=True)
class Denoiser:
    """One block class, and the denoisers that are built of it.

    Classes are dotted names, so that no host library is imported by a table.

    Attributes:
        block: dotted class name of the block.
        roots: dotted class names of the denoisers.
        attention: children that attend; each is self-attention (or joint attention with the
            prompt) unless its own ``is_cross_attention`` says otherwise. The first one's keys
            measure similarity.
        feed_forward: children that are feed-forward.
        whole: the block's branches read the same tokens in parallel, so it is merged before and
            restored after as a whole, less its residual.
        latent: argument of the root with the latent image ``(B, channels, height, width)``, with
            ``video`` ``(B, channels, frames, height, width)``, or with ``ids``
            ``(B, N, channels)``.
        video: blocks get every frame as an image of its own.
        skip: children of the root that hold blocks of this class for something else than the
            tokens of an image.
        patch: attribute of the root with the side of a patch in latent pixels; None for 1.
        ids: argument of the root ``(N, 3)`` with the row and column of every visual token, where
            the latent comes as a sequence.
        clock: what the root's ``timestep`` counts up to.
        follow: arguments of the attention laid out along text and visual tokens, ``(T + N, d)``
            tables that all samples share; they follow the survivors of each sample.
        restored: which outputs of an attention that returns several are laid out along the visual
            tokens.
        prompt_first: in joint attention the prompt's tokens come before the visual ones.
        left: what is not merged, in words, for the documentation.
        example: a model of this row, likewise.
    """

    block: str
    roots: tuple[str, ...]
    attention: tuple[str, ...] = ()
    feed_forward: tuple[str, ...] = ()
    whole: bool = False
    latent: str = "hidden_states"
    video: bool = False
    skip: tuple[str, ...] = ()
    patch: str | None = None
    ids: str | None = None
    clock: float = 1000.0
    follow: tuple[str, ...] = ()
    restored: tuple[int, ...] = (0,)
    prompt_first: bool = False
    left: str = ""
    example: str = ""

    def patch_of(self, root: nn.Module) -> int:
        """Side of a patch in latent pixels."""
        return 1 if self.patch is None else int(attribute(root, self.patch))
