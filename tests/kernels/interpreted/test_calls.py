"""The calls around the kernels: gradients, compilers, failures, and what kernels do not take."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreted.make import assert_same, keys
from turbovlm.kernels import (
    KernelWarning,
    attend,
    choose_tokens,
    look,
    merge_tokens,
    ops,
    plain,
    switch,
    use_kernels,
)
from turbovlm.maths.match import Padding, Rule
from turbovlm.maths.plan import Plan
from turbovlm.maths.score import find_score
from turbovlm.maths.sets import EvenOdd
from turbovlm.plug.attention import Look
from turbovlm.plug.encoder.packed import PackedAttention

NAMES = ("look", "attend", "best", "plan", "merge")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that really ran, in order."""
    import importlib

    seen: list[str] = []
    for name in NAMES:
        module = importlib.import_module(f"turbovlm.kernels.triton.{name}")
        run = getattr(module, f"launch_{name}")

        def noted(*args: object, name: str = name, run: Callable[..., object] = run) -> object:
            seen.append(name)
            return run(*args)

        monkeypatch.setattr(module, f"launch_{name}", noted)
    return seen


def block(x: Tensor, k: Tensor, size: Tensor, method: str = "turbo", r: int = 5) -> list[Tensor]:
    """Everything that a merging block calls."""
    tokens, bias = k.shape[2], size.log()
    seen = look(k, k[:, :, 0], bias, 0.25)
    mixed = attend(k, k, k, bias, 0.25)
    plan = choose_tokens(*seen, r, EvenOdd(tokens, 1), Rule(find_score(method)))
    out, new, log = merge_tokens(x, size, plan, mixed.transpose(1, 2).flatten(2))
    return [mixed, plan.source, plan.destination, plan.keep, plan.slot, out, new, log]


def inputs(tokens: int = 21) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.randint(1, 5, (2, tokens)).float()
    return torch.randn(2, tokens, 32), keys(2, 2, tokens, 16), size


def assert_all_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        assert a.stride() == b.stride()


def test_kernels_give_what_torch_gives(launched: list[str]) -> None:
    given = inputs()
    found = block(*given)
    assert launched == list(NAMES)
    use_kernels("torch")
    expected = block(*given)
    assert launched == list(NAMES)
    assert_all_close(found, expected)


def test_auto_leaves_a_cpu_to_torch(launched: list[str]) -> None:
    use_kernels("auto")
    block(*inputs())
    assert launched == []


def test_torch_computes_where_gradients_are_needed(launched: list[str]) -> None:
    x, k, size = inputs()
    with torch.enable_grad():
        x.requires_grad_()
        k.requires_grad_()
        out = block(x, k, size)[5]
        out.square().sum().backward()
    assert launched == []
    assert x.grad is not None
    assert k.grad is not None
    assert k.grad.abs().sum() > 0
    with torch.no_grad():
        block(x, k, size)
    assert launched == list(NAMES)


def test_the_meta_device_is_left_to_torch(launched: list[str]) -> None:
    x, k, size = (given.to("meta") for given in inputs())
    found = block(x, k, size)
    assert launched == []
    assert found[5].shape == (2, 16, 32)


@pytest.mark.parametrize("method", ["turbo", "semantics"])
def test_one_graph_under_compile(method: str, launched: list[str]) -> None:
    given = inputs()
    expected = block(*given, method)
    launched.clear()
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_all_close(compiled(*given, method), expected)
    assert launched == list(NAMES)


def test_compile_follows_lengths(launched: list[str]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (21, 22, 35):
        given = inputs(tokens)
        assert_all_close(compiled(*given), block(*given))
    assert launched == list(NAMES) * 6


def test_the_registered_operators_are_what_they_say() -> None:
    x, k, size = inputs()
    unit, logits = ops.look(k, k[:, :, 0], None, 0.25)
    score, partner = ops.best_destinations(unit, 1)
    made = ops.make_plan(score, partner, logits, (5, 21, 1))
    plan = [made.source, made.destination, made.slot, made.keep]
    count, removed = torch.tensor([[21], [15]]), torch.tensor([[5], [3]])
    calls = torch.ops.turbovlm
    for call, given in (
        (calls.attend, (k, k, k, size.log(), 0.25)),
        (calls.look, (k, k[:, :, 0], None, 0.25)),
        (calls.look, (k, None, size, 0.25)),
        (calls.best, (unit, 1, None)),
        (calls.best, (unit, 1, count)),
        (calls.plan, (score, partner, logits, [5, 21, 1], None, 1.0, [])),
        (calls.plan, (score, partner, None, [5, 21, 1], 6.0, 1.0, [count, removed])),
        (calls.merge, (x, None, None, plan)),
        (calls.merge, (x, x, size, plan)),
    ):
        torch.library.opcheck(call.default, given)


def test_fake_tensors_see_shapes_alone(launched: list[str]) -> None:
    from torch._subclasses import FakeTensorMode

    given = inputs()
    expected = block(*given)
    launched.clear()
    mode = FakeTensorMode()
    x, k, size = (mode.from_tensor(x) for x in given)
    with mode:
        found = block(x, k, size)
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    assert launched == []


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_that_fails_warns_once_and_torch_goes_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    def fails(*_: object) -> None:
        raise RuntimeError("out of resource: shared memory\nand more")

    given = inputs()
    expected = block(*given)
    module = importlib.import_module(f"turbovlm.kernels.triton.{name}")
    monkeypatch.setattr(module, f"launch_{name}", fails)
    monkeypatch.setattr(switch, "_failed", set())
    with pytest.warns(KernelWarning, match=f"'{name}'.*RuntimeError: out of resource") as seen:
        assert_all_close(block(*given), expected)
    assert len(seen) == 1
    assert "and more" not in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_all_close(block(*given), expected)


def test_running_out_of_memory_is_no_failure_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("turbovlm.kernels.triton.attend.launch_attend", fails)
    k = keys(1, 2, 9, 16)
    with pytest.raises(torch.OutOfMemoryError):
        attend(k, k, k, torch.zeros(1, 9), 0.25)
    assert switch._failed == set()


def test_a_process_without_triton_is_served_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs()
    expected = block(*given)
    monkeypatch.setattr(switch, "_failed", set())
    for name in NAMES:  # as a broken installation: found, and not importable
        monkeypatch.setitem(sys.modules, f"turbovlm.kernels.triton.{name}", None)
    with pytest.warns(KernelWarning, match="ModuleNotFoundError"):
        assert_all_close(block(*given), expected)


@pytest.mark.parametrize("width", [257, 320])
def test_what_attend_does_not_take_goes_to_torch(width: int, launched: list[str]) -> None:
    k, bias = keys(1, 2, 9, width), torch.zeros(1, 9)
    attend(k, k, k, bias, 0.1)
    attend(k.double(), k.double(), k.double(), bias, 0.1)
    attend(k[..., :16], k[..., :16], k, bias, 0.1)  # values of another width
    assert launched == []
    attend(k[..., :256], k[..., :256], k[..., :256], bias, 0.1)
    assert launched == ["attend"]


def test_autocast_casts_what_fused_attention_would() -> None:
    q, bias = keys(1, 2, 9, 16), torch.randn(1, 9)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(q, q, q.bfloat16(), bias, 0.25)
        use_kernels("torch")
        expected = attend(q, q, q.bfloat16(), bias, 0.25)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)


def test_choose_takes_padding_under_compile() -> None:
    k = keys(2, 2, 21, 16)
    padding = Padding(torch.tensor([[21], [14]]), torch.tensor([[6], [3]]))

    def call(k: Tensor, count: Tensor, removed: Tensor) -> Plan:
        seen, rule = look(k, k[:, :, 0], scale=0.25), Rule(find_score("turbo"))
        return choose_tokens(*seen, 6, EvenOdd(21, 1), rule, Padding(count, removed))

    expected = call(k, padding.count, padding.removed)
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_same(compiled(k, padding.count, padding.removed), expected)
    use_kernels("torch")
    assert_same(call(k, padding.count, padding.removed), expected)


def test_the_torch_path_is_the_oracle_of_maths() -> None:
    k, bias = keys(2, 2, 9, 16), torch.rand(2, 9)
    logits = k @ k.transpose(-1, -2) * 0.25 + bias[:, None, None]
    literal = logits.softmax(-1) @ k
    torch.testing.assert_close(plain.torch_attend(k, k, k, bias, 0.25), literal, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        plain.torch_look(k, k[:, :, 0], bias, 0.25)[1], logits[:, :, 0], atol=1e-6, rtol=0
    )


def test_segments_of_a_packed_sequence_are_a_batch_with_padding(launched: list[str]) -> None:
    q, k, v = (torch.randn(1, 2, 21, 16) for _ in range(3))
    bias = torch.randint(1, 5, (1, 21)).float().log()

    def run() -> list[Tensor | None]:
        with PackedAttention((5, 9, 7), bias, Look("key", "mean")) as seen:
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return [out, seen.unit, seen.value]

    found = run()
    assert launched == ["look", "attend"]
    use_kernels("torch")
    for a, b in zip(found, run(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert found[2] is not None
    torch.testing.assert_close(found[2].sum(), torch.tensor(21.0))  # 1 for the average token
