"""torch.compile: applying and removing after compilation takes effect, and traces still work."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import turbovlm
from tests.hosts.zoo import TIMM, pixels, wild
from turbovlm import Merge


def vit() -> Any:
    return wild(VisionTransformer(**TIMM))


@torch.no_grad()
def test_a_compiled_model_notices_apply_and_remove() -> None:
    torch._dynamo.reset()
    model, x = vit(), pixels()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = model(x)
    assert torch.equal(compiled(x), expected)
    for r in (5, 3):
        turbovlm.apply(model, Merge(r=r))
        merged = model(x)
        assert not torch.allclose(merged, expected, atol=1e-4)
        assert torch.equal(compiled(x), merged)
        with turbovlm.recording(model) as run:
            assert torch.equal(compiled(x), merged)
            assert run.trace.tokens[-1] == 65 - 4 * r
        turbovlm.remove(model)
        assert torch.equal(compiled(x), expected)


@torch.no_grad()
def test_dynamic_batches_and_export() -> None:
    torch._dynamo.reset()
    model = vit()
    turbovlm.apply(model, Merge(r=5))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for batch in (1, 4, 3, 2):
        x = pixels(batch)
        torch.testing.assert_close(compiled(x), model(x))
    exported = torch.export.export(model, (pixels(),)).module()
    torch.testing.assert_close(exported(pixels(seed=1)), model(pixels(seed=1)))


@torch.no_grad()
def test_blocks_compiled_one_by_one() -> None:
    torch._dynamo.reset()
    model, x = vit(), pixels()
    turbovlm.apply(model, Merge(r=5))
    expected = model(x)
    for block in model.blocks:
        block.compile(backend="eager")
    torch.testing.assert_close(model(x), expected)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@torch.no_grad()
def test_inductor_agrees_with_eager() -> None:
    """The real code generator, once: fused kernels may round differently but not choose so."""
    torch._dynamo.reset()
    model, x = vit(), pixels()
    turbovlm.apply(model, Merge(r=5))
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, atol=1e-4, rtol=1e-4)
