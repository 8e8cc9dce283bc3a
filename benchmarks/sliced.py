"""The limit: the same timm model with tokens sliced off where ours merges them, and no merge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import turbovlm
from turbovlm.plug.swap import site_of


class SlicedBlock(Block):
    """A block that keeps its first ``limit_keep`` tokens between attention and MLP."""

    limit_keep: int
    limit_copy: bool

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        attention = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        x = (x + self.drop_path1(self.ls1(attention)))[:, : self.limit_keep]
        if self.limit_copy:
            x = x.contiguous()
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


@contextmanager
def sliced(model: VisionTransformer, lengths: Sequence[int], copy: bool) -> Iterator[None]:
    """Slice to ``lengths[i]`` tokens in block ``i``: a contiguous copy, or a strided view."""
    blocks = [block for block in model.blocks if type(block) is Block]
    if len(blocks) != len(lengths):
        raise SystemExit(f"{type(model).__name__} has blocks that this benchmark cannot slice")
    try:
        for block, keep in zip(blocks, lengths, strict=True):
            block.__class__ = SlicedBlock
            block.__dict__.update(limit_keep=keep, limit_copy=copy)
        yield
    finally:
        for block in blocks:
            block.__class__ = Block
            for name in ("limit_keep", "limit_copy"):
                block.__dict__.pop(name, None)


@contextmanager
def attention_kernel(model: VisionTransformer, fused: bool) -> Iterator[None]:
    """Fused attention or the materialised one, as timm's own switch has it."""
    layers = [m for m in model.modules() if isinstance(m, Attention)]
    before = [layer.fused_attn for layer in layers]
    for layer in layers:
        layer.__dict__["fused_attn"] = fused
    try:
        yield
    finally:
        for layer, flag in zip(layers, before, strict=True):
            layer.__dict__["fused_attn"] = flag


def lengths_seen(model: VisionTransformer, run: Callable[[], object]) -> tuple[int, ...]:
    """Tokens that really leave each block in one call."""
    if site_of(model) is not None:  # a hook would be given every position back
        with turbovlm.recording(model) as record:
            run()
        return record.trace.tokens
    seen: list[int] = []

    def note(_module: object, _inputs: object, output: Tensor) -> None:
        seen.append(output.shape[1])

    hooks = [block.register_forward_hook(note) for block in model.blocks]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(seen)


def kernels_seen(run: Callable[[], object]) -> str:
    """Names of the attention operators of one call, with how often each ran."""
    log = _AttentionLog()
    with log:
        run()
    return ", ".join(f"{name} x{count}" for name, count in sorted(log.seen.items()))


class _AttentionLog(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._overloadpacket.__name__ if hasattr(func, "_overloadpacket") else str(func)
        # a softmax over a (B, H, N, N) map is materialised attention
        materialised = name in ("_softmax", "_safe_softmax") and args[0].dim() == 4
        if "scaled_dot_product" in name or materialised:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))
