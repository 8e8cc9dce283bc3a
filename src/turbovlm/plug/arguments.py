"""What a block gets beside its tokens: bound to names, and led along with the survivors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turbovlm.errors import UnsupportedInput
from turbovlm.plug.row import Row
from turbovlm.plug.state import Tokens

NOT_IN_AN_ENCODER = ("is_causal", "cache", "past_key_values")  # newer and older transformers


def bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name; ``names`` are those of the host's forward, in order."""
    return dict(zip(names, args, strict=False)) | kwargs


def seed(mask: Any) -> Tensor | None:
    """Sizes before the first merge, from a padding mask: 1 for a token, 0 for padding.

    Args:
        mask: ``(B, 1, 1, N)`` or ``(B, 1, N, N)``, True or 0 where a token is seen; or None.

    Returns:
        ``(B, N)`` fp32, or None without a mask.

    Raises:
        UnsupportedInput: if queries see different tokens (a causal mask, windows, packing).
    """
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() != 4:
        raise UnsupportedInput(
            f"the attention mask has the shape {tuple(mask.shape)}; a padding mask is laid out as "
            "(batch, 1, 1 or tokens, tokens): give it so, or turbovlm.remove(model)"
        )
    seen = mask if mask.dtype == torch.bool else mask == 0
    rows = seen[:, 0]
    known = not (mask.is_meta or torch.compiler.is_compiling())  # else there are no values to read
    if rows.shape[1] > 1 and known and not torch.equal(rows, rows[:, :1].expand_as(rows)):
        raise UnsupportedInput(
            "the attention mask differs from query to query (causal, windowed or packed), so the "
            "tokens do not all see each other and cannot be merged: turbovlm.remove(model)"
        )
    return rows[:, 0].float()


def along(row: Row, tokens: Tokens, start: int, prefix: int, given: dict[str, Any]) -> None:
    """Let the arguments follow the survivors, in place.

    Raises:
        UnsupportedInput: for a tensor that the row does not name: it might be laid out along the
            tokens and would no longer fit them.
    """
    for name, value in given.items():
        if name == row.mask:
            given[name] = None  # padding has size 0
        elif name in row.follow:
            if tokens.position is not None:
                given[name] = _rows(value, tokens.position, start, prefix)
        elif name in NOT_IN_AN_ENCODER and value is not None and value is not False:
            raise UnsupportedInput(
                f"the block was called with {name}={type(value).__name__}: a causal decoder's "
                "tokens cannot be merged; turbovlm.remove(model)"
            )
        elif isinstance(value, Tensor) and name not in row.aside:
            raise UnsupportedInput(
                f"the block got {name}, a tensor of shape {tuple(value.shape)} (a mask?), which "
                "would not follow the merged tokens: call the model without it, or "
                "turbovlm.remove(model)"
            )


def _rows(value: Any, position: Tensor, start: int, prefix: int) -> Any:
    """Rows of a table ``(N, d)``, ``(H, N, d)`` or ``(B, H, N, d)`` at each sample's survivors.

    A table without the prefix tokens stays one without them. Returns ``(B, 1 or H, M, d)``, which
    broadcasts over heads as the table did.
    """
    if isinstance(value, tuple | list):
        return type(value)(_rows(v, position, start, prefix) for v in value)
    if not isinstance(value, Tensor):
        return value
    rows = value.shape[-2]
    if rows not in (start, start - prefix):
        raise UnsupportedInput(
            f"a table of {rows} rows does not belong to {start} tokens with {prefix} prefix "
            "tokens: the host library lays it out in a way its row does not describe; report it"
        )
    index = position if rows == start else position[:, prefix:] - prefix
    table = value
    while table.dim() < 4:
        table = table.unsqueeze(0)
    if table.shape[0] == 1:
        return table[0][:, index].transpose(0, 1)
    where = index[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3])
    return table.gather(2, where)
