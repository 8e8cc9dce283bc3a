"""On top of quantization, pruning and adapters: nothing of theirs is lost, and nothing of ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils import prune
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

import turbovlm
from tests.hosts.zoo import TIMM, pixels, wild
from turbovlm import Merge

MERGE = Merge(r=4)


def vit() -> Any:
    return wild(VisionTransformer(**TIMM))


def int8(model: Any) -> Any:
    quantize_(model, Int8WeightOnlyConfig())
    return model


def written_out(model: Any) -> Any:
    """The same with dense weights of what int8 left."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(layer.weight.dequantize(), requires_grad=False)
    return model


def masked(model: Any) -> Any:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            prune.l1_unstructured(
                layer, "weight", 0.3
            )  # weight = original x mask, before each call
    return model


def without_masks(model: Any) -> Any:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            prune.remove(layer, "weight")
    return model


def adapted(model: Any) -> Any:
    torch.manual_seed(1)
    lora = get_peft_model(model, LoraConfig(target_modules=["qkv", "fc1"], r=4))
    for name, weight in lora.named_parameters():
        if "lora_B" in name:  # zero at first, which would change nothing
            nn.init.normal_(weight, std=0.1)
    return lora.eval()


@pytest.mark.parametrize(
    ("compress", "dense"),
    [
        (int8, written_out),
        (masked, without_masks),
        (adapted, lambda model: model.merge_and_unload()),
    ],
)
@torch.no_grad()
def test_the_same_as_with_the_weights_written_out(
    compress: Callable[[Any], Any], dense: Callable[[Any], Any]
) -> None:
    plain, x = vit(), pixels()
    model = compress(copy.deepcopy(plain))
    before = model(x)
    assert not torch.allclose(before, plain(x), atol=1e-4), "nothing was compressed"
    with turbovlm.applied(model, Merge(r=0)):
        assert torch.equal(model(x), before)
    with turbovlm.applied(model, MERGE):
        merged = model(x)
    assert not torch.allclose(merged, before, atol=1e-4), "merging changed nothing"
    assert torch.equal(model(x), before)
    same = dense(model)
    with turbovlm.applied(same, MERGE):
        torch.testing.assert_close(same(x), merged, atol=1e-4, rtol=1e-4)


def int8_products(model: Any) -> Any:
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


@pytest.mark.parametrize("compress", [int8, int8_products, masked, adapted])
@torch.no_grad()
def test_compressed_before_or_after(compress: Callable[[Any], Any]) -> None:
    early, late, x = vit(), vit(), pixels()
    early = compress(early)
    before = early(x)
    turbovlm.apply(early, MERGE)
    turbovlm.apply(late, MERGE)
    whole = late(x)
    late = compress(late)
    assert torch.equal(early(x), late(x))
    assert not torch.equal(late(x), whole), "nothing was compressed"
    turbovlm.remove(early)
    turbovlm.remove(late)
    assert torch.equal(early(x), before)
    assert torch.equal(late(x), before)
