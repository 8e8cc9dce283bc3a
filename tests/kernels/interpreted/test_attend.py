from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from turbovlm.kernels import plain
from turbovlm.kernels.triton.attend import SHORT, TILES
from turbovlm.kernels.triton.attend import launch_attend as attend
from turbovlm.kernels.triton.tile import power, split_width

WIDTHS = (16, 24, 32, 40, 64, 72, 80, 88, 96, 128, 256)
HALVES = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


def packed(tokens: int, width: int, heads: int = 2, batch: int = 2) -> list[Tensor]:
    """q, k and v as strided views of one joint projection."""
    joint = torch.randn(batch, tokens, 3, heads, width)
    return list(joint.permute(2, 0, 3, 1, 4).unbind(0))


def sizes(batch: int, tokens: int) -> Tensor:
    return torch.randint(1, 9, (batch, tokens)).float().log()


def literal(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """The formula in double precision, every key head repeated for its queries."""
    q, k, v = q.double(), k.double(), v.double()
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = q @ k.transpose(-1, -2) * scale + bias.double()[:, None, None]
    return logits.softmax(-1) @ v


def test_parts_are_powers_of_two_with_little_padding() -> None:
    expected = {
        8: (16, 0), 16: (16, 0), 24: (32, 0), 32: (32, 0), 40: (32, 16), 48: (32, 16),
        56: (64, 0), 64: (64, 0), 72: (64, 16), 80: (64, 16), 88: (64, 32), 96: (64, 32),
        104: (128, 0), 128: (128, 0), 144: (128, 16), 192: (128, 64), 256: (256, 0),
    }  # fmt: skip
    assert {width: split_width(width) for width in expected} == expected
    for width in range(1, 257):
        assert width <= sum(split_width(width)) <= power(width)
        assert split_width(width) in TILES


@pytest.mark.parametrize("width", WIDTHS)
def test_every_head_dimension_in_fp32(width: int) -> None:
    q, k, v = packed(37, width)
    bias, scale = sizes(2, 37), width**-0.5
    found = attend(q, k, v, bias, scale)
    torch.testing.assert_close(found.double(), literal(q, k, v, bias, scale), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, plain.torch_attend(q, k, v, bias, scale), atol=1e-5, rtol=0)
    assert found.shape == q.shape
    assert found.transpose(1, 2).is_contiguous()
    without = plain.torch_attend(q, k, v, torch.zeros_like(bias), scale)
    assert (found - without).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("width", [40, 64, 72, 256])
def test_half_precision(width: int, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in packed(37, width))
    bias, scale = sizes(2, 37), width**-0.5
    found = attend(q, k, v, bias, scale)
    assert found.dtype == dtype
    expected = literal(q, k, v, bias, scale)
    torch.testing.assert_close(found.double(), expected, atol=HALVES[dtype], rtol=HALVES[dtype])


@pytest.mark.parametrize("tokens", [1, 2, 16, 31, 63, 64, 65, SHORT, SHORT + 1, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_length(tokens: int, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in packed(tokens, 24, heads=1))
    bias = sizes(2, tokens)
    atol = 1e-5 if dtype == torch.float32 else HALVES[dtype]
    torch.testing.assert_close(
        attend(q, k, v, bias, 0.3).double(), literal(q, k, v, bias, 0.3), atol=atol, rtol=atol
    )


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads first": lambda x: x.contiguous(),
    "same sample for all": lambda x: x[:1].expand(3, -1, -1, -1),
    "one head for all": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "one token for all": lambda x: x[:, :, :1].expand(-1, -1, 20, -1),
    "width not innermost": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "odd strides": lambda x: torch.nn.functional.pad(x, (0, 3))[..., :24],
    "every second token": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    q, k, v = (LAYOUTS[layout](x) for x in packed(20, 24, heads=4, batch=3))
    bias = sizes(1, 20).expand(3, -1)
    found = attend(q, k, v, bias, 0.2)
    torch.testing.assert_close(found.double(), literal(q, k, v, bias, 0.2), atol=1e-5, rtol=0)
    mixed = attend(q, k.contiguous(), v, bias.contiguous(), 0.2)
    torch.testing.assert_close(mixed, found, atol=1e-6, rtol=0)


@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_grouped_heads(key_heads: int) -> None:
    q = torch.randn(2, 6, 21, 16)
    k, v = torch.randn(2, 2, key_heads, 21, 16).unbind(0)
    bias = sizes(2, 21)
    found = attend(q, k, v, bias, 0.25)
    torch.testing.assert_close(found.double(), literal(q, k, v, bias, 0.25), atol=1e-5, rtol=0)


def test_padding_gets_no_attention() -> None:
    q, k, v = packed(70, 16)
    bias = torch.zeros(2, 70)
    bias[1, 50:] = -1e4
    found = attend(q, k, v, bias, 0.25)
    short = [x[1:, :, :50] for x in (q, k, v)]
    alone = attend(short[0], short[1], short[2], bias[1:, :50], 0.25)
    torch.testing.assert_close(found[1:, :, :50], alone, atol=1e-6, rtol=0)
    bias[1] = -torch.inf  # nothing to attend to at all: zeros, as fused attention has it
    assert torch.equal(attend(q, k, v, bias, 0.25)[1], torch.zeros_like(v[1]))
    torch.testing.assert_close(attend(q, k, v, bias, 0.25)[0], found[0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_and_inf_stay_in_their_sample(bad: float) -> None:
    q, k, v = packed(20, 24)
    bias = sizes(2, 20)
    expected = attend(q, k, v, bias, 0.2)
    k[1, 0, 3] = bad
    found = attend(q, k, v, bias, 0.2)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1, 1], expected[1, 1])
    assert found[1, 0].isnan().any()


def test_large_logits_neither_overflow_nor_vanish() -> None:
    q, k, v = packed(70, 16)
    bias = torch.randn(2, 70) * 1e3
    found = attend(q * 50, k * 50, v, bias, 0.25)
    torch.testing.assert_close(
        found.double(), literal(q * 50, k * 50, v, bias, 0.25), atol=1e-3, rtol=0
    )
