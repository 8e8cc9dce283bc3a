"""Where the painter's cross-attention is told to look while it is trained.

A clause names a cell of the scene's 3 x 3 grid: the visual tokens of that cell are to read the
words of that clause, and all others none. Left to the pictures alone, a denoiser takes many times
as many steps to find out what "top left" means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbovlm_lab.captioner import SPECIAL_TOKENS
from turbovlm_lab.grammar import caption_vocabulary
from turbovlm_lab.scenes import GRID, Object

_COMMA = len(SPECIAL_TOKENS) + caption_vocabulary().index(",")


def cell_of_tokens(side: int) -> Tensor:
    """The cell (0 to 8) of every token of an image of ``side x side`` tokens, ``(side, side)``."""
    band = torch.arange(side) * GRID // side
    return GRID * band[:, None] + band


def words_to_attend(tokens: NDArray[np.int64], scenes: Sequence[Sequence[Object]]) -> Tensor:
    """What each cell is to look at: bool ``(B, 9, T)``.

    Args:
        tokens: captions ``(B, T)``; those without a word describe nothing.
        scenes: the objects of the B captions, in their order.
    """
    ids = torch.from_numpy(tokens)
    comma = ids == _COMMA
    clause = comma.cumsum(1) - comma.long()  # text attends to what came before: a comma knows all
    word = ids >= len(SPECIAL_TOKENS)
    clause = clause.masked_fill(~word, -1)
    named = torch.full((len(scenes), GRID * GRID), -1)
    for row, objects in enumerate(scenes):
        if word[row].any():
            for index, item in enumerate(objects):
                named[row, GRID * item.row + item.column] = index
    return clause[:, None] == named[:, :, None]


@contextmanager
def guided_painting(unet: Any, looks: Tensor) -> Iterator[list[Tensor]]:
    """Cross-attention that notes how much of it went elsewhere, while this is open.

    Args:
        unet: the painter's.
        looks: as `wanted` gives it.

    Yields:
        One number for each cross-attention of the forwards so far: the mean of -log of the share
        of attention, all heads together, on the words wanted; cells that a clause names and
        the others count for a half each, however many they are.
    """
    missed: list[Tensor] = []

    def attend(attention: Any, x: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        query, key, value = (
            made.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for made in (
                attention.to_q(x),
                attention.to_k(encoder_hidden_states),
                attention.to_v(encoder_hidden_states),
            )
        )
        share = (query * attention.scale @ key.transpose(-1, -2)).softmax(-1)
        place = cell_of_tokens(round(x.shape[1] ** 0.5)).flatten()
        looked = -(share.float().mean(1) * looks[:, place]).sum(-1).clamp(min=1e-5).log()
        named = ~looks[:, place, 0]
        missed.append((_mean(looked, named) + _mean(looked, ~named)) / 2)
        out = (share.to(value.dtype) @ value).transpose(1, 2).flatten(-2)
        return attention.to_out[1](attention.to_out[0](out))

    before = unet.attn_processors
    own = {name: attend if ".attn2." in name else kept for name, kept in before.items()}
    unet.set_attn_processor(dict(own))
    try:
        yield missed
    finally:
        unet.set_attn_processor(before)


def _mean(x: Tensor, chosen: Tensor) -> Tensor:
    return (x * chosen).sum() / chosen.sum().clamp(min=1)
