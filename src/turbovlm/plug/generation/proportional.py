"""Proportional attention in a denoiser: a merged token counts as often as it has members."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from turbovlm.errors import UnseenAttention
from turbovlm.plug.tap import FUSED, SOFTMAX, with_bias

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


class Proportional(TorchFunctionMode):
    """Adds ``log size`` to the logits of the one attention that runs while this is open.

    Whoever wrote it: fused, whole, or in slices of the batch times the heads, as diffusers has
    all three. Left out, merged regions lose weight against single tokens, and the picture
    drifts as a whole, the more the more noise there is.

    Args:
        bias: ``(B, M)`` of the visual tokens.
        text: tokens of the prompt that are keys too, of size 1.
        prompt_first: whether they come first.
        heads: of the attention.
        name: of the module, for errors.

    Raises:
        UnseenAttention: on leaving, if no attention was seen.
    """

    def __init__(self, bias: Tensor, text: int, prompt_first: bool, heads: int, name: str) -> None:
        super().__init__()
        self.bias = F.pad(bias, (text, 0) if prompt_first else (0, text))
        self.heads, self.name = heads, name
        self.rows, self.done = 0, False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Everything but the attention straight on."""
        kwargs = kwargs or {}
        if func is FUSED and not self.done:
            self.done = True
            return self._fused(*args, **kwargs)
        if func in SOFTMAX and not self.done:
            return func(args[0] + self._rows(args[0]), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Any = None,
        *more: Any,
        **kw: Any,
    ) -> Tensor:
        attn_mask = with_bias(attn_mask, self.bias[:, None, None].to(query.dtype))
        return FUSED(query, key, value, attn_mask, *more, **kw)

    def _rows(self, logits: Tensor) -> Tensor:
        """The bias of materialised logits ``(B, H, N, M)``, or of the next rows of ``(B H)``."""
        bias = self.bias.to(logits.dtype)
        if logits.dim() == 4:
            self.rows += self.heads * logits.shape[0]
            return bias[:, None, None]
        first, self.rows = self.rows, self.rows + logits.shape[0]
        return bias.repeat_interleave(self.heads, 0)[first : self.rows, None]

    def __exit__(self, kind: Any, *rest: Any) -> None:
        """Raise unless every row of the attention was seen."""
        super().__exit__(kind, *rest)
        seen = self.done or self.rows == self.heads * self.bias.shape[0]
        if kind is None and not seen:
            raise UnseenAttention(
                f"the attention of {self.name} was not seen, so merged tokens cannot count as "
                f"often as they have members: {_FIX}"
            )
