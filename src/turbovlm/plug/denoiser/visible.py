"""Proportional attention in a denoiser: a merged token counts as often as it has members."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from turbovlm.errors import UnseenAttention
from turbovlm.plug.attention import Attention

_SEEN = ("native", "_native_math", "_native_efficient", "_native_cudnn")
"""Backends of diffusers that end in torch's attention and take a mask."""
_FIX = (
    "use torch's attention (unet.set_default_attn_processor(), no xformers; "
    "transformer.reset_attention_backend()), or proportional=False"
)


def check_visible(attention: Any, name: str) -> None:
    """Whether merged tokens can count in this attention, as far as one can tell before it runs.

    Raises:
        UnseenAttention: for a processor or a backend whose kernel hides its logits.
    """
    processor = getattr(attention, "processor", None)
    backend = getattr(processor, "_attention_backend", None)
    backend = getattr(backend, "value", backend)
    title = type(processor).__name__
    if backend in (None, *_SEEN) and not any(word in title for word in ("XFormers", "NPU", "XLA")):
        return
    by = title if backend is None else f"the backend {backend!r}"
    raise UnseenAttention(
        f"the attention of {name} is computed by {by}, which hides its logits, so merged tokens "
        f"cannot count as often as they have members: {_FIX}"
    )


@contextmanager
def counting(
    bias: Tensor, text: int, prompt_first: bool, heads: int, name: str
) -> Iterator[Attention]:
    """Let merged tokens count as often as they have members in the one attention that runs inside.

    Left out, merged regions lose weight against single tokens, and the picture drifts as a
    whole, the more the more noise there is.

    Args:
        bias: ``(B, M)`` log size of the visual tokens.
        text: tokens of the prompt that are keys too, of size 1.
        prompt_first: whether they come first.
        heads: of the attention.
        name: of the module, for errors.

    Raises:
        UnseenAttention: on leaving, if no attention was seen.
    """
    padded = F.pad(bias, (text, 0) if prompt_first else (0, text)) if text else bias
    attention = Attention(padded, heads=heads)
    with attention:
        yield attention
    if not attention.calls:
        raise UnseenAttention(
            f"the attention of {name} was not seen, so merged tokens cannot count as "
            f"often as they have members: {_FIX}"
        )
