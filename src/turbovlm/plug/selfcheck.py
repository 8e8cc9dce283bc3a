"""The self-check of apply: do the two half blocks add up to the host's block, bit for bit?

Both functions run a block on a few random tokens, in evaluation mode and without gradients.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import UnsuitableBlock
from turbovlm.plug.block import TurboBlock
from turbovlm.plug.row import Row, attribute
from turbovlm.plug.state import Call
from turbovlm.plug.tap import Tap

CHECK_TOKENS = 12
TOLERANCE = 0.05
"""Between two kernels of one attention, in any precision; another function is far outside."""


def attention_extras(block: nn.Module, row: Row, prefix: int) -> int | None:
    """Run the host's block once and see what its attention returns.

    Returns:
        None for a tensor, else the number of values beside it in a tuple. This differs between
        versions of a host library, so no row states it.
    """
    returned: list[Any] = []

    def see(_: nn.Module, __: Any, output: Any) -> None:
        returned.append(output)

    handle = getattr(block, row.attention[0]).register_forward_hook(see)
    try:
        with torch.no_grad(), _evaluating(block):
            block(_probe(block, prefix + CHECK_TOKENS), **required(block, type(block), row))
    finally:
        handle.remove()
    return len(returned[0]) - 1 if returned and isinstance(returned[0], tuple) else None


def check_block(block: TurboBlock) -> None:
    """Run the block whole and in halves on a small random input and compare.

    Raises:
        UnsuitableBlock: if they differ: parallel branches, or children the row does not name.
        UnseenAttention: if no attention call was seen.
    """
    site = block.turbo_site
    patch, row = site.patch, site.patch.row
    if any(p.device.type == "meta" for p in block.parameters()):
        return  # no values to compare: a model without weights, or weights elsewhere
    x = _probe(block, patch.prefix + CHECK_TOKENS)
    rest = required(block, site.host, row)
    with torch.no_grad(), _evaluating(block):
        plain = site.host.forward(block, x, **rest)
        with Tap(None, None, None):  # it turns nn.MultiheadAttention's own kernel off
            whole = site.host.forward(block, x, **rest)
        call, tap = Call(x.shape[1]), Tap(None, patch.guide, patch.config.metric)
        with patch.running(call):
            y = block.turbo_second(call, block.turbo_first(call, tap, x, rest), rest)
    name = type(block).__name__
    if not isinstance(whole, Tensor):
        raise UnsuitableBlock(
            f"{name} returns {type(whole).__name__}, not a tensor: its row does "
            "not fit this version of the host library; report it"
        )
    if not torch.equal(whole, y):
        worst = (whole - y).abs().max().item()
        raise UnsuitableBlock(
            f"{name} is not x + attention(x) followed by x + mlp(x): its halves (attention "
            f"{row.attention}, mlp {row.mlp}) differ from the whole by {worst:.1e}; parallel "
            "branches cannot be merged in between"
        )
    try:
        torch.testing.assert_close(whole, plain, rtol=TOLERANCE, atol=TOLERANCE)
    except AssertionError as error:
        raise UnsuitableBlock(
            f"the attention of {name} computes something else under the tap: report it"
        ) from error
    if tap.metric is None or tap.metric.shape[:2] != x.shape[:2]:
        raise UnsuitableBlock(
            f"the keys of {name} do not follow its tokens: {patch.config.metric} "
            f"vectors of shape {None if tap.metric is None else tap.metric.shape}"
        )


def noisy_copy(block: nn.Module) -> nn.Module:
    """The block on the CPU in fp32, with random weights: one on the meta device has none."""
    with torch.device("cpu"):
        twin = copy.deepcopy(block).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*twin.parameters(), *twin.buffers()):
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            else:
                value.zero_()
    return twin


def required(block: nn.Module, host: type[nn.Module], row: Row) -> dict[str, Any]:
    """What the host's forward insists on beside the tokens: None for a mask, tables of noise."""
    _, _, *rest = inspect.signature(host.forward).parameters.values()
    named = (p for p in rest if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty)
    given: dict[str, Any] = {p.name: None for p in named}
    if row.tables is not None:
        like = next(p for p in block.parameters() if p.is_floating_point())
        noise = torch.randn(
            CHECK_TOKENS, attribute(block, row.tables), generator=torch.Generator().manual_seed(1)
        ).to(like.device, like.dtype)
        given |= {name: (noise, noise.flip(0)) for name in row.follow}
    return given


def _probe(block: nn.Module, tokens: int) -> Tensor:
    """Random tokens ``(2, tokens, C)``; width, dtype and device are those of the block's norm."""
    for module in block.modules():
        shape = getattr(module, "normalized_shape", None)
        width = shape[-1] if shape is not None else getattr(module, "in_features", None)
        if width is not None:
            like = next(p for p in block.parameters() if p.is_floating_point())
            noise = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(0))
            return noise.to(like.device, like.dtype)
    raise UnsuitableBlock(f"{type(block).__name__} has neither a norm nor a linear layer")


@contextmanager
def _evaluating(block: nn.Module) -> Iterator[None]:
    """Dropout and drop path off for the check, every flag back afterwards."""
    flags = [(m, m.training) for m in block.modules()]
    for module, _ in flags:
        module.training = False
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
