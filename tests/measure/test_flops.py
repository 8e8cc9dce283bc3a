"""The counting rules on hand-worked cases, and what `flops` leaves as it found it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from turbovlm.errors import InputError
from turbovlm.measure import Flops, flops

aten = torch.ops.aten


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def cost(function: Callable[..., Any], *shapes: tuple[int, ...], device: str = "cpu") -> int:
    tensors = tuple(torch.zeros(shape, device=device) for shape in shapes)
    return flops(Function(function), tensors).macs


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (lambda a, b: a @ b, [(4, 5, 6), (4, 6, 7)], 4 * 5 * 6 * 7),
        (lambda a, b: a @ b, [(2, 3, 5, 6), (6, 7)], 2 * 3 * 5 * 6 * 7),
        (lambda a, b: a @ b, [(5, 6), (6,)], 5 * 6),
        (lambda a, b: a @ b, [(6,), (6,)], 6),
        (torch.addmv, [(5,), (5, 6), (6,)], 5 * 6),
        (torch.addmm, [(7,), (5, 6), (6, 7)], 5 * 6 * 7),
        (torch.baddbmm, [(4, 5, 7), (4, 5, 6), (4, 6, 7)], 4 * 5 * 6 * 7),
        (torch.addbmm, [(5, 7), (4, 5, 6), (4, 6, 7)], 4 * 5 * 6 * 7),
        (lambda a, b: torch.einsum("bid,bjd->bij", a, b), [(4, 5, 6), (4, 7, 6)], 4 * 5 * 6 * 7),
        (F.linear, [(2, 3, 6), (7, 6), (7,)], 2 * 3 * 6 * 7),
        (F.conv2d, [(2, 3, 8, 8), (5, 3, 2, 2)], 2 * 7 * 7 * 5 * 3 * 4),
        (lambda x, w: F.conv2d(x, w, stride=2, groups=2), [(2, 4, 8, 8), (6, 2, 2, 2)],
         2 * 4 * 4 * 6 * 2 * 4),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2), [(2, 4, 3, 3), (4, 5, 2, 2)],
         2 * 3 * 3 * 4 * 5 * 4),
        (lambda x, w: F.layer_norm(x, (6,), w), [(2, 3, 6), (6,)], 5 * 2 * 3 * 6),
        (lambda x: F.layer_norm(x, (6,)), [(2, 3, 6)], 5 * 2 * 3 * 6),
        (lambda x: F.rms_norm(x, (6,)), [(2, 3, 6)], 0),
        (lambda x: F.group_norm(x, 2), [(2, 4, 6)], 0),
        (lambda x: F.gelu(x.softmax(-1)).relu(), [(2, 4, 6)], 0),
        (lambda x: x.scatter_add(0, torch.zeros_like(x).long(), x), [(4, 6)], 0),
    ],
)  # fmt: skip
def test_rules(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]], expected: int, device: str
) -> None:
    assert cost(function, *shapes, device=device) == expected


B, H, N, M, D, V = 2, 4, 10, 12, 8, 16
ATTENTION = B * H * N * M * (D + V)


def eager_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("place", ["meta", "cpu", "fake cpu", "fake cuda"])
@pytest.mark.parametrize("value", [D, V])  # V: the CPU's fused kernel refuses, torch falls back
def test_attention_costs_the_same_on_every_device(place: str, masked: bool, value: int) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = q.new_zeros(B, 1, 1, M) if masked else None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    shapes = (B, H, N, D), (B, H, M, D), (B, H, M, value)
    expected = B * H * N * M * (D + value)
    assert cost(eager_attention, *shapes) == expected
    if place.startswith("fake"):
        with FakeTensorMode():
            assert cost(attend, *shapes, device=place.split()[1]) == expected
    else:
        assert cost(attend, *shapes, device=place) == expected


@pytest.mark.parametrize(
    "kernel",
    [
        lambda q, k, v: aten._scaled_dot_product_flash_attention(q, k, v),
        lambda q, k, v: aten._scaled_dot_product_flash_attention_for_cpu(q, k, v),
        lambda q, k, v: aten._scaled_dot_product_efficient_attention(q, k, v, None, False),
        lambda q, k, v: aten._scaled_dot_product_cudnn_attention(q, k, v, None, False),
    ],
    ids=["flash", "flash_for_cpu", "efficient", "cudnn"],
)
def test_every_fused_kernel_is_counted(kernel: Callable[..., Any]) -> None:
    shapes = (B, H, N, D), (B, H, M, D), (B, H, M, D)
    assert cost(kernel, *shapes, device="meta") == B * H * N * M * 2 * D


def test_grouped_queries_cost_as_many_heads_as_the_query_has() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    shapes = (B, H, N, D), (B, 2, M, D), (B, 2, M, D)
    assert cost(attend, *shapes) == cost(attend, *shapes, device="meta") == B * H * N * M * 2 * D


def test_fast_path_of_the_encoder_layer_is_not_lost() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    count = flops(layer, torch.zeros(3, 5, 16)).macs
    linear = 3 * 5 * (4 * 16 * 16 + 2 * 16 * 32)
    assert count == linear + 3 * 2 * 5 * 5 * 8 * 2 + 2 * 5 * 3 * 5 * 16
    assert torch.backends.mha.get_fastpath_enabled()


class Toy(nn.Module):
    """Two linear layers that run twice in ``generate``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Sequential(nn.Dropout(), nn.Linear(5, 7))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.second(self.first(x) * scale)

    def generate(self, x: Tensor) -> Tensor:
        self(x)
        return self.first(x)


def test_units_and_breakdown() -> None:
    count = flops(Toy(), torch.zeros(2, 3))
    assert count.macs == 2 * (15 + 35)
    assert count.gmacs == count.gflops == 100 / 1e9
    assert count.flops_2x == 200
    assert count.by_op == {"aten.addmm": 100}
    assert count.by_module == {"first": 30, "second": 70, "second.1": 70}
    assert list(count.by_module) == ["first", "second", "second.1"]
    assert str(count) == f"{count.gflops:.3f} GFLOPs (a multiply-add counts as one)"
    assert count == Flops(100, {"aten.addmm": 100}, dict(count.by_module))


def test_forms_of_input_and_call() -> None:
    x = torch.zeros(2, 3)
    for inputs in (x, (x, 2.0), {"x": x, "scale": 2.0}):
        assert flops(Toy(), inputs).macs == 100
    generated = flops(Toy(), (x,), call=lambda model, inputs: model.generate(*inputs))
    assert generated.macs == 100 + 30
    assert generated.by_module["first"] == 60


def test_a_model_on_meta_takes_real_inputs() -> None:
    with torch.device("meta"):
        model = Toy()
    assert flops(model, {"x": torch.zeros(2, 3)}).macs == 100


def test_mode_is_put_back_module_by_module() -> None:
    model = Toy().train()
    model.first.eval()
    with pytest.raises(ValueError, match="broken"):
        flops(model, torch.zeros(2, 3), call=broken)
    flops(model, torch.zeros(2, 3))
    assert [m.training for m in model.modules()] == [True, False, True, True, True]
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def broken(_model: nn.Module, _inputs: object) -> None:
    raise ValueError("broken")


def test_a_compiled_model_is_counted_uncompiled() -> None:
    toy = Toy()
    model = torch.compile(toy, backend="eager")
    assert isinstance(model, nn.Module)
    count = flops(model, torch.zeros(2, 3))
    assert count.macs == 100
    assert "second.1" in count.by_module
    toy.first.compile(backend="eager")
    assert flops(toy, torch.zeros(2, 3)).macs == 100


def test_inference_mode_around_it_changes_nothing() -> None:
    with torch.inference_mode():
        shapes = (B, H, N, D), (B, H, M, D), (B, H, M, V)
        assert cost(F.scaled_dot_product_attention, *shapes) == ATTENTION
        assert cost(F.linear, (2, 3), (5, 3)) == 30


def test_a_custom_operator_without_formula_is_named() -> None:
    @torch.library.custom_op("turbovlm_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    count = flops(Function(twice), torch.zeros(2, 3))
    assert count.uncounted == ("turbovlm_test.twice",)
    assert flops(Toy(), torch.zeros(2, 3)).uncounted == ()


def test_bad_arguments_are_refused_with_the_fix() -> None:
    with pytest.raises(InputError, match="call="):
        flops(Toy(), [torch.zeros(2, 3)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="Module"):
        flops(torch.zeros, torch.zeros(2, 3))  # pyright: ignore[reportArgumentType]


def test_questions_about_values_on_meta_are_answered_with_yes() -> None:
    """Models ask whether a mask is all ones, or whether placeholders and features agree."""

    def attend(x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[0], device=x.device).bool()
        return x @ x.T if mask.all() else x

    assert cost(attend, (3, 4), device="meta") == cost(attend, (3, 4)) == 3 * 4 * 3
    with pytest.raises(RuntimeError, match="meta"):  # a number is no yes or no
        cost(lambda x: x * x.sum().item(), (3, 4), device="meta")


class LearnedQuery(nn.Module):
    """A parameter, seen through a view, goes into a module, as in attention pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, 6))
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.project = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.query.expand(len(x), -1, -1))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_learned_query_is_counted_and_goes_on_learning(device: str) -> None:
    model = LearnedQuery().to(device)
    assert flops(model, torch.zeros(5, 3)).macs == 5 * 6 * 7
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        "query": True,
        "frozen": False,
        "project.weight": True,
        "project.bias": True,
    }
