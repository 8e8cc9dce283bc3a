"""The limit benchmark compares what it says it compares (no times here)."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

timm = pytest.importorskip("timm")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("sides")


def small() -> Any:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=48, num_heads=3, depth=3
    ).eval()


def bench(sides: ModuleType, model: Any, compiled: bool = False) -> Any:
    setting = sides.Setting("small", "fp32", 2, 4)
    return sides.Bench(
        model,
        setting,
        method="turbo",
        device="cpu",
        attention=("fused", "eager"),
        compiled=compiled,
    )


def test_every_form_does_the_same_work_and_leaves_the_model_alone(sides: ModuleType) -> None:
    model = small()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, classes = model(x), [type(m) for m in model.modules()]
    one = bench(sides, model)
    assert one.lengths == (13, 9, 5)
    forms = one.forms()
    assert sorted(forms) == sorted(
        f"{form}/{attention}"
        for form in ("off/plain", "limit/view", "limit/copy", "ours/merge")
        for attention in ("fused", "eager")
    )
    for attention, kernel in (("fused", "scaled_dot_product"), ("eager", "softmax")):
        for limit in ("view", "copy"):
            names = ("off/plain", f"limit/{limit}", "ours/merge")
            chosen = {n.split("/")[0]: forms[f"{n}/{attention}"] for n in names}
            kernels = one.check(chosen)
            assert all(kernel in k and k.endswith("x3") for k in kernels.values()), kernels
    assert [type(m) for m in model.modules()] == classes
    assert torch.equal(model(x), before)


def test_the_limit_keeps_the_first_tokens(sides: ModuleType) -> None:
    # the MLP does not mix rows: slicing before it equals dropping rows of the whole block
    model = small()
    sliced = importlib.import_module("sliced").sliced
    block, x = model.blocks[0], torch.randn(2, 17, 48)
    whole = block(x)
    for copy in (False, True):
        with sliced(model, (13, 9, 5), copy):
            torch.testing.assert_close(block(x), whole[:, :13])


def test_a_side_with_other_tokens_is_refused(sides: ModuleType) -> None:
    one = bench(sides, small())
    forms = one.forms()
    with pytest.raises(SystemExit, match=r"limit leaves \(17, 17, 17\) tokens"):
        one.check({"limit": forms["off/plain/fused"]})
    one.lengths = (17, 17, 17)
    with pytest.raises(SystemExit, match="does not change the output"):
        one.check({"off": forms["off/plain/fused"], "ours": forms["off/plain/fused"]})


def test_compiled_sides_share_the_weights(sides: ModuleType) -> None:
    model = small()
    twin = sides.twin(model)
    assert twin is not model
    assert twin.blocks[0] is not model.blocks[0]
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
