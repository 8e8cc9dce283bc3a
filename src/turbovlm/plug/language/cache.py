"""A key-value cache that holds fewer tokens than the prompt has.

Seen from outside the language model the cache is as long as the prompt and what was generated, so
that ``generate`` slices its inputs, counts its positions and lays out its masks as it always does.
While the language model runs, the cache is the host's own again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from turbovlm.errors import UnsupportedInput
from turbovlm.plug.swap import Swap, install, uninstall

NAMES = ("cache", "past_key_values")  # newer and older transformers


@dataclass(frozen=True)
class ShortRecord:
    """Which columns of the prompt a cache holds.

    Attributes:
        host: the cache's own class.
        columns: ``(B, P)`` the prompt's column of each cached token, -1 for padding; later tokens
            follow without a gap.
        length: columns that these stand for, dropped ones included.
        padded: whether there is padding among the columns.
    """

    host: type[Any]
    columns: Tensor
    length: int
    padded: bool
    patch: None = None  # it belongs to a cache, not to a model

    @property
    def dropped(self) -> int:
        """How many tokens fewer the cache holds than it stands for."""
        return self.length - self.columns.shape[1]

    def until(self, cached: int) -> Tensor:
        """``(B, cached)`` the columns of the first ``cached`` tokens."""
        batch, first = self.columns.shape
        later = torch.arange(first, cached, device=self.columns.device) + self.dropped
        return torch.cat([self.columns, later.expand(batch, -1)], 1)


class ShortCache:
    """Mixed in front of a cache class of transformers that `hold` was called with."""

    turbo_site: ShortRecord

    def get_seq_length(self, *args: Any, **kwargs: Any) -> Any:
        """Tokens that the cache stands for; 0 once it is empty."""
        cached = cast(Any, super()).get_seq_length(*args, **kwargs)
        return cached + self.turbo_site.dropped

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of a mask over all that the cache stands for."""
        layer = cast(Any, self).layers[layer_idx]
        if hasattr(layer, "max_cache_len") and not layer.is_sliding:
            return layer.max_cache_len, 0  # as long as it ever gets
        return int(self.get_seq_length(layer_idx)) + query_length, 0

    def reset(self) -> None:
        """Empty the cache; it is the host's own again."""
        release(self)
        cast(Any, self).reset()

    def crop(self, count: int) -> None:
        """Take back the last ``-count`` tokens, none of them of a shortened prompt."""
        site = self.turbo_site
        cached = int(cast(Any, super()).get_seq_length())
        if count > 0 or cached + count < site.columns.shape[1]:
            raise UnsupportedInput(
                "a cache whose visual tokens were reduced can only be cropped by a negative number "
                "of tokens that came after the prompt: start from a new cache"
            )
        cast(Any, super()).crop(count)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams change places."""
        cast(Any, super()).reorder_cache(beam_idx)
        self._choose(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these samples."""
        cast(Any, super()).batch_select_indices(indices)
        self._choose(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sample ``repeats`` times."""
        cast(Any, super()).batch_repeat_interleave(repeats)
        site = self.turbo_site
        hold(self, replace(site, columns=site.columns.repeat_interleave(repeats, 0)))

    def _choose(self, rows: Tensor) -> None:
        site = self.turbo_site
        hold(self, replace(site, columns=site.columns[rows.to(site.columns.device)]))


def record_of(cache: Any) -> ShortRecord | None:
    """What a shortened cache holds; None for any other."""
    return cache.turbo_site if isinstance(cache, ShortCache) else None


def hold(cache: Any, record: ShortRecord) -> None:
    """Let ``cache`` stand for more tokens than it holds."""
    if isinstance(cache, ShortCache):
        release(cache)
    install([Swap(cast(Any, cache), cast(Any, ShortCache), replace(record, host=type(cache)))])


def release(cache: Any) -> None:
    """Make the cache the host's own again; what it holds stays."""
    uninstall(cache)
