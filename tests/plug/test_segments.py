"""`fuse_attention` in packed towers: all segments of one length in one call of attention."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import turbovlm
from tests.hosts.packed import CASES, DEPTH, QWEN25, Packed, pack, run
from tests.language.zoo import QWEN25 as WHOLE
from turbovlm import VisualTokens, errors
from turbovlm.plug.segments import Layout

each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
FUSED = torch.nn.functional.scaled_dot_product_attention


class Count(torch.overrides.TorchFunctionMode):
    """Counts calls of fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is FUSED
        return func(*args, **(kwargs or {}))


def counted(model: Any, case: Packed, grids: Sequence[tuple[int, int, int]] | None = None):
    """What the tower gives, and how often attention was called."""
    with Count() as count:
        out = run(model, *pack(grids or case.grids))
    return out, count.calls


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@each_case
@torch.no_grad()
def test_is_the_host_bit_for_bit_in_fewer_calls(case: Packed) -> None:
    model = case.build()
    expected, before = counted(model, case)
    kinds, names = [type(m) for m in model.modules()], list(model.state_dict())
    assert turbovlm.fuse_attention(model) is model
    assert list(model.state_dict()) == names
    out, after = counted(model, case)
    assert same(out, expected)
    # segments of 96, 60, 96, 36 and 36 patches: three lengths; windows of 4 x 4 patches, with
    # borders of 2 x 4 or 4 x 2 and corners of 2 x 2
    windows, full = (2, 2) if case.windows else (0, DEPTH)
    assert before == full * 5 + windows * (6 + 6 + 6 + 4 + 4)
    assert after == full * 3 + windows * 3
    with pytest.raises(errors.AlreadyApplied):
        turbovlm.fuse_attention(model)
    turbovlm.unfuse_attention(model)
    assert [type(m) for m in model.modules()] == kinds
    assert counted(model, case)[1] == before
    with pytest.raises(errors.NotApplied):
        turbovlm.unfuse_attention(model)


@each_case
@torch.no_grad()
def test_a_single_image_is_the_host(case: Packed) -> None:
    model, one = case.build(), ((1, 8, 8),)
    expected, before = counted(model, case, one)
    turbovlm.fuse_attention(model)
    out, after = counted(model, case, one)
    assert same(out, expected)
    assert (before, after) == ((2 + 2 * 4, DEPTH) if case.windows else (DEPTH, DEPTH))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_other_dtypes_too(dtype: torch.dtype) -> None:
    model, (pixels, grids) = QWEN25.build().to(dtype), pack()
    expected = run(model, pixels.to(dtype), grids)
    out = run(turbovlm.fuse_attention(model), pixels.to(dtype), grids)
    assert out[0].dtype == dtype
    assert same(out, expected)


def test_gradients_are_the_same() -> None:
    model: Any = QWEN25.build().train()
    pixels, grids = pack()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        run(model, pixels, grids)[1].square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    with torch.inference_mode():  # must leave nothing behind that training cannot use
        run(turbovlm.fuse_attention(model), pixels, grids)
    out = gradients()
    model.gradient_checkpointing_enable()
    again = gradients()
    assert expected.keys() == out.keys() == again.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(out[name], gradient, msg=name)
        torch.testing.assert_close(again[name], gradient, msg=name)


@torch.no_grad()
def test_deepcopy_and_pickle_keep_it() -> None:
    model = turbovlm.fuse_attention(QWEN25.build())
    expected, calls = counted(model, QWEN25)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        out, found = counted(twin, QWEN25)
        assert found == calls
        assert same(out, expected)
        turbovlm.unfuse_attention(twin)
        assert counted(twin, QWEN25)[1] > calls


@torch.no_grad()
def test_a_compiler_gets_the_hosts_own_code() -> None:
    model, (pixels, grids) = turbovlm.fuse_attention(QWEN25.build()), pack()
    expected = run(model, pixels, grids)
    torch._dynamo.reset()
    compiled = torch.compile(lambda p, g: run(model, p, g), backend="eager")
    for a, b in zip(compiled(pixels, grids), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_only_sdpa_is_fused() -> None:
    model = QWEN25.build()
    model.set_attn_implementation("eager")  # type: ignore[operator]
    with pytest.raises(errors.UnsuitableBlock, match="set_attn_implementation"):
        turbovlm.fuse_attention(model)
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    turbovlm.fuse_attention(model)
    model.set_attn_implementation("eager")  # type: ignore[operator]
    with pytest.raises(errors.UnseenAttention, match="unfuse_attention"):
        run(model, *pack())


@torch.no_grad()
def test_a_whole_model_with_fewer_visual_tokens() -> None:
    model, inputs = WHOLE.build(), WHOLE.inputs(1, 2)
    with Count() as host:
        plain = model(**inputs).logits
    turbovlm.apply(model, VisualTokens(keep=0.25))
    expected = model(**inputs).logits
    assert expected.shape != plain.shape
    turbovlm.fuse_attention(model)
    with Count() as fewer:
        assert torch.equal(model(**inputs).logits, expected)
    assert fewer.calls < host.calls
    turbovlm.remove(model)  # leaves the fused attention
    with Count() as fewer:
        assert torch.equal(model(**inputs).logits, plain)
    assert fewer.calls < host.calls


def test_layout_pads_segments_of_about_one_length() -> None:
    x = torch.arange(13).unsqueeze(1)
    layout = Layout.of((4, 2, 1, 6), x.device, 4)
    parts = layout.split(x)
    assert parts[0][..., 0].tolist() == [[0, 1, 2, 3], [4, 5, 5, 5], [6, 6, 6, 6]]
    assert parts[1][..., 0].tolist() == [[7, 8, 9, 10, 11, 12]]
    assert layout.real[0] is not None
    assert layout.real[0].sum(1).tolist() == [4, 2, 1]
    assert layout.real[1] is None
    assert torch.equal(layout.join(parts), x)
    whole = Layout.of((6, 6), x.device, 4)
    assert whole.order is None
    assert whole.real == (None,)


def test_layout_is_a_permutation() -> None:
    x = torch.arange(2 * 14).view(14, 2)
    layout = Layout.of((4, 2, 0, 4, 3, 1), x.device)
    parts = layout.split(x)
    assert [p.shape for p in parts] == [(2, 4, 2), (1, 2, 2), (1, 3, 2), (1, 1, 2)]
    assert torch.equal(parts[0][1], x[6:10])
    assert torch.equal(layout.join(parts), x)
    assert layout is Layout.of((4, 2, 0, 4, 3, 1), x.device)
