"""The self-check of apply: do the two half blocks add up to the host's block, bit for bit?

It runs copies of the blocks on a few random tokens; the user's model is not touched.
"""

from __future__ import annotations

import inspect
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import TurboError, UnsuitableBlock
from turbovlm.plug.attention import Attention
from turbovlm.plug.encoder.block import BlockSite, TurboBlock
from turbovlm.plug.encoder.half import NOTHING, run_half
from turbovlm.plug.encoder.packed import PackedAttention
from turbovlm.plug.encoder.row import Row
from turbovlm.plug.encoder.state import UNDECLARED, EncoderCall, EncoderPatch
from turbovlm.plug.names import attribute
from turbovlm.plug.swap import Swap, install, parameters_of, plain_class
from turbovlm.plug.twin import device_of, probe, twin_of

CHECK_TOKENS = 12
_TWO = (CHECK_TOKENS,) * 2
TOLERANCE = 0.05
"""Between two kernels of one attention, in any precision; another function is far outside."""


def attention_extras(block: nn.Module, row: Row, prefix: int) -> int | None:
    """Run a copy of the host's block and see what its attention returns.

    Returns:
        None for a tensor, else the number of values beside it in a tuple. This differs between
        versions of a host library, so no row states it.

    Raises:
        UnsuitableBlock: if the copy does not run.
    """
    returned: list[Any] = []

    def see(_: nn.Module, __: Any, output: Any) -> None:
        returned.append(output)

    host = plain_class(block)
    twin = twin_of(block, host, device_of(block))
    try:
        getattr(twin, row.attention[0]).register_forward_hook(see)
        with torch.no_grad():
            x, rest = _trial(twin, host, row, prefix)
            twin(x, **rest)
    except TurboError:
        raise
    except Exception as error:
        raise _unrunnable(host, error) from error
    return len(returned[0]) - 1 if returned and isinstance(returned[0], tuple) else None


def check_block(block: nn.Module, patch: EncoderPatch) -> None:
    """Run a copy of the block whole and in halves on a small random input and compare.

    Args:
        block: of the user's model; not changed.
        patch: of its tower.

    Raises:
        UnsuitableBlock: if they differ (parallel branches, or children the row does not name),
            or the copy does not run.
        UnseenAttention: if no attention call was seen.
    """
    try:
        with torch.no_grad():
            _compare(block, patch)
    except TurboError:
        raise
    except Exception as error:
        raise _unrunnable(plain_class(block), error) from error


def _compare(block: nn.Module, patch: EncoderPatch) -> None:
    row, host = patch.row, plain_class(block)
    name = host.__name__
    twin = twin_of(block, host, device_of(block))
    x, rest = _trial(twin, host, row, patch.prefix)
    plain = host.forward(twin, x, **rest)
    if not isinstance(plain, Tensor):
        raise UnsuitableBlock(
            f"{name} returns {type(plain).__name__}, not a tensor: its row does "
            "not fit this version of the host library; report it"
        )
    install([Swap(twin, TurboBlock, BlockSite(patch, (0,), host, parameters_of(host.forward)))])
    call, child = EncoderCall(UNDECLARED, declared=True), row.attention[0]
    unseen, seen = Attention(None), Attention(None, patch.look(None))
    if row.packed is not None:
        lengths = _TWO if row.packed.bounds else (sum(_TWO),)
        unseen, seen = (PackedAttention(lengths, None, look) for look in (None, patch.look(None)))
        if row.packed.bounds:
            rest[row.packed.bounds] = torch.tensor([0, sum(_TWO)], dtype=torch.int32)
    # watched too: that turns nn.MultiheadAttention's own kernel off
    whole = run_half(twin, call, NOTHING, x, rest, watch=(child, unseen))
    y = run_half(twin, call, patch.mlp_muted, x, rest, watch=(child, seen))
    y = run_half(twin, call, patch.attention_muted, y, rest)
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
            f"the attention of {name} computes something else while it is watched: report it"
        ) from error
    metric = seen.unit
    if metric is None and isinstance(seen, Attention):
        metric = seen.metric
    expected = x.shape[:-1] if row.packed is None else x.shape[-2:-1]
    if metric is None or metric.shape[:-1] != expected:
        raise UnsuitableBlock(
            f"the keys of {name} do not follow its tokens: {patch.metric} "
            f"vectors of shape {None if metric is None else tuple(metric.shape)}"
        )


def required(block: nn.Module, host: type[nn.Module], row: Row) -> dict[str, Any]:
    """What the host's forward insists on beside the tokens: None for a mask, tables of noise."""
    _, _, *rest = inspect.signature(host.forward).parameters.values()
    named = (p for p in rest if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty)
    given: dict[str, Any] = {p.name: None for p in named}
    if row.tables is not None:
        like = next(p for p in block.parameters() if p.is_floating_point())
        noise = torch.randn(
            CHECK_TOKENS,
            attribute(block, row.tables),
            generator=torch.Generator().manual_seed(1),
            device="cpu",
        ).to(like.device, like.dtype)
        given |= {name: (noise, noise.flip(0)) for name in row.follow}
    return given


def _trial(
    twin: nn.Module, host: type[nn.Module], row: Row, prefix: int
) -> tuple[Tensor, dict[str, Any]]:
    """Two samples of random tokens, and what else the block needs."""
    x, rest = _tokens(twin, prefix), required(twin, host, row)
    if row.packed is None:
        return x, rest
    for name in row.follow:
        rest[name] = tuple(table.repeat(len(_TWO), 1) for table in rest[name])
    if row.packed.bounds is None:
        return x.flatten(0, 1).unsqueeze(0), rest
    ends = torch.tensor([0, *accumulate(_TWO)], dtype=torch.int32)
    rest[row.packed.bounds] = ends.to(x.device)
    return x.flatten(0, 1), rest


def _tokens(twin: nn.Module, prefix: int) -> Tensor:
    x = probe(twin, prefix + CHECK_TOKENS)
    if x is None:
        raise UnsuitableBlock(f"{type(twin).__name__} has neither a norm nor a linear layer")
    return x


def _unrunnable(host: type[nn.Module], error: Exception) -> UnsuitableBlock:
    return UnsuitableBlock(
        f"the self-check could not run a copy of {host.__name__} on random tokens "
        f"({type(error).__name__}: {error}): its row does not fit this version of the host "
        "library, or its weights are of a kind that does not compute alone"
    )
