"""Masks and positions that follow the tokens which stay."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbovlm.errors import UnsupportedInput

# keys of a dictionary of masks
SLIDING = "sliding_attention"
RECURRENT = ("linear_attention", "conv")


@dataclass(frozen=True)
class Follow:
    """Where each token that stays was, and what the cache makes of it.

    Attributes:
        rows: ``(B, L)`` index of each new token among those that the language model was handed,
            -1 for padding.
        columns: ``(B, P + L)`` column of the prompt of each token that the cache will hold, -1
            for padding.
        length: columns of the prompt, the new ones included.
        padded: whether there is padding.
        before: kind of layer to length and offset of its mask before the tokens went.
        after: the same after.
    """

    rows: Tensor
    columns: Tensor
    length: int | Tensor
    padded: bool
    before: dict[str, tuple[int, int]]
    after: dict[str, tuple[int, int]]

    def mask(self, mask: Any) -> Any:
        """Any mask that transformers hands to a language model.

        Args:
            mask: ``(B, length)`` with 0 for padding; ``(B, 1, N, columns)`` bool or additive;
                a dictionary by kind of layer; or None.

        Raises:
            UnsupportedInput: for anything else, or a mask of another length.
        """
        if mask is None:
            return (self.columns >= 0).long()
        if isinstance(mask, dict):
            return {
                kind: self._recurrent(m) if kind in RECURRENT else self._square(m, kind)
                for kind, m in mask.items()
            }
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return self._flat(mask)
        return self._square(mask, "full_attention")

    def _flat(self, mask: Tensor) -> Tensor:
        check_width(mask, int(self.length))
        seen = mask.expand(len(self.columns), -1).gather(1, self.columns.clamp_min(0))
        return seen.masked_fill(self.columns < 0, 0)

    def _recurrent(self, mask: Tensor | None) -> Tensor | None:
        """``(B, N)`` with 0 for padding among the new tokens; None without any."""
        real = self.rows >= 0
        if mask is None:
            return real.long() if self.padded and real.shape[1] > 1 else None
        return mask.gather(1, self.rows.clamp_min(0)).masked_fill(~real, 0)

    def _square(self, mask: Any, kind: str) -> Any:
        kind = SLIDING if kind == SLIDING else "full_attention"
        length, offset = self.after[kind]
        if mask is None:  # causal, without padding
            return self._causal(length, offset) if self.padded else None
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            raise UnsupportedInput(
                f"an attention mask of type {type(mask).__name__} cannot follow the tokens that "
                "stay: use attn_implementation='sdpa' or 'eager'"
            )
        wide, start = self.before[kind]
        if mask.shape[-1] != wide:
            raise UnsupportedInput(
                f"the attention mask has {mask.shape[-1]} columns where the cache has {wide}: "
                "give a mask of shape (batch, tokens) instead"
            )
        batch, tokens = self.rows.shape
        at = self._held(length, offset) - start
        hidden = (at < 0) | (at >= wide)
        mask = mask.expand(batch, -1, -1, -1)
        rows = self.rows.clamp_min(0)[:, None, :, None]
        mask = mask.gather(2, rows.expand(-1, mask.shape[1], -1, wide))
        at = at.clamp(0, wide - 1)[:, None, None]
        mask = mask.gather(3, at.expand(-1, mask.shape[1], tokens, -1))
        nothing = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return mask.masked_fill(hidden[:, None, None], nothing)

    def _held(self, length: int, offset: int) -> Tensor:
        """``(B, length)`` columns of what the cache holds from ``offset`` on; -1 for nothing."""
        held = self.columns[:, offset : offset + length]
        return torch.nn.functional.pad(held, (0, length - held.shape[1]), value=-1)

    def _causal(self, length: int, offset: int) -> Tensor:
        """``(B, 1, L, length)`` bool: what is held and is not later."""
        real = self._held(length, offset) >= 0
        total, tokens = self.columns.shape[1], self.rows.shape[1]
        key = torch.arange(offset, offset + length, device=real.device)
        query = torch.arange(total - tokens, total, device=real.device)
        return (key <= query.unsqueeze(1))[None, None] & real[:, None, None]

    def positions(self, position: Tensor) -> Tensor:
        """Positions stay what they were: ``(1 or B, N)``, or several channels of that.

        Of four channels the first one is the order of the text, by which transformers looks for
        packed sequences: it is numbered without gaps.

        Raises:
            UnsupportedInput: for positions of another length.
        """
        rows = self.rows.clamp_min(0)
        if position.dim() == 2:
            return position.expand(len(rows), -1).gather(1, rows)
        channels = len(position)
        position = position.expand(-1, len(rows), -1)
        position = position.gather(2, rows.expand(channels, -1, -1))
        if channels == 4:
            back = torch.arange(1 - rows.shape[1], 1, device=rows.device)
            position = torch.cat([(position[:1, :, -1:] + back), position[1:]])
        return position


def check_width(mask: Tensor, tokens: int) -> None:
    """Raise `UnsupportedInput` unless ``mask`` ``(B, columns)`` has a column a token."""
    if mask.shape[1] != tokens:
        raise UnsupportedInput(
            f"the attention mask has {mask.shape[1]} columns for {tokens} tokens, those in the "
            "cache included: give one column a token"
        )


def sizes(cache: Any, tokens: int) -> dict[str, tuple[int, int]]:
    """Length and offset of the mask of each kind of layer, for so many new tokens."""
    if cache is None:
        return {"full_attention": (tokens, 0), SLIDING: (tokens, 0)}
    sliding = list(cache.is_sliding)
    # newer transformers has layers without keys as well
    kinds = [sliding, *(getattr(cache, n, None) or [] for n in ("is_linear", "is_dummy"))]
    full = [not any(row) for row in itertools.zip_longest(*kinds)]
    first = {
        "full_attention": full.index(True) if True in full else 0,
        SLIDING: sliding.index(True) if True in sliding else 0,
    }
    return {kind: cache.get_mask_sizes(tokens, layer) for kind, layer in first.items()}
