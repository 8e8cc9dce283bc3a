"""What a block gets beside its tokens: bound to names, and cut to the survivors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turbovlm.errors import UnsupportedInput
from turbovlm.plug.encoder.row import Row
from turbovlm.plug.encoder.tokens import Tokens

NOT_IN_AN_ENCODER = ("is_causal", "cache", "past_key_values")  # newer and older transformers


def real_tokens(mask: object, batch: int, known: bool) -> Tensor | None:
    """Which tokens are not padding, from the mask that a block gets.

    What a mask means is read from where it comes from and from its shape and type, never from
    its values: those may differ from call to call, and a compiler cannot look at them.

    Args:
        mask: ``(B or 1, 1, 1 or N, N)``, or None.
        batch: B.
        known: the encoder was given a padding mask that this one is made of. Otherwise only a
            bool mask that all heads and queries share is one, True where a token is seen.

    Returns:
        ``(B, N)`` bool, or None without a mask.

    Raises:
        UnsupportedInput: for any other mask.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise UnsupportedInput(
            f"the block got its mask as {type(mask).__name__}, which merged tokens cannot follow: "
            "load the model with attn_implementation='sdpa', or turbovlm.remove(model)"
        )
    shared = mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[2] == 1
    if not (known and mask.dim() == 4) and not (shared and mask.dtype == torch.bool):
        raise UnsupportedInput(
            f"the attention mask, {mask.dtype} of shape {tuple(mask.shape)}, is not known to mark "
            "padding alone: give the encoder a mask (batch, tokens), or a bool mask (batch, 1, 1, "
            "tokens) that all heads and queries share; or turbovlm.remove(model)"
        )
    seen = mask[:, 0, 0]
    return (seen if mask.dtype == torch.bool else seen == 0).expand(batch, -1)


def along(row: Row, tokens: Tokens, prefix: int, given: dict[str, Any]) -> None:
    """Let the arguments follow the survivors, in place.

    Raises:
        UnsupportedInput: for a tensor that the row does not name: it might be laid out along the
            tokens and would no longer fit them.
    """
    for name, value in given.items():
        if name == row.mask:
            given[name] = None  # padding has size 0
        elif name in row.follow:
            position = tokens.position()
            if position is not None:
                given[name] = _rows(value, position, tokens.start, prefix)
        elif name in NOT_IN_AN_ENCODER and value is not None and value is not False:
            raise UnsupportedInput(
                f"the block was called with {name}={type(value).__name__}: a causal decoder's "
                "tokens cannot be merged; turbovlm.remove(model)"
            )
        elif isinstance(value, Tensor) and name not in row.aside:
            raise unfollowed(name, value)


def unfollowed(name: str, value: Tensor) -> UnsupportedInput:
    """The error for a tensor that no row names."""
    return UnsupportedInput(
        f"the block got {name}, a tensor of shape {tuple(value.shape)} (a mask?), which would not "
        "follow the merged tokens: call the model without it, or turbovlm.remove(model)"
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
