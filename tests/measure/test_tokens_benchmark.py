"""The benchmark of visual tokens compares what it says it compares (no times here)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 100,
}


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("tokens")


@pytest.fixture
def models(tokens: ModuleType) -> ModuleType:
    return importlib.import_module("tokens_models")


def llava(models: ModuleType) -> Any:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    whole = models.SHAPES["small"]
    return models.Shape(lambda: models._llava(vision, TEXT), whole.tokens, whole.images)


def qwen(models: ModuleType) -> Any:
    """The benchmark's own configuration, made small."""

    def build() -> tuple[Any, Any]:
        head, config = models.SHAPES["qwen2.5-vl-3b"].build()
        for name, value in TEXT.items():
            setattr(config.text_config, name, value)
        config.text_config.layer_types = ["full_attention"] * 2
        config.text_config.rope_parameters["mrope_section"] = [1, 1, 2]
        vision = config.vision_config
        vision.depth, vision.hidden_size, vision.intermediate_size = 2, 32, 48
        vision.num_heads, vision.out_hidden_size, vision.fullatt_block_indexes = 2, 32, [1]
        return head, config

    def patches(batch: int) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.randn(batch * 12 * 12, 3 * 2 * 14 * 14),
            "image_grid_thw": torch.tensor([[1, 12, 12]] * batch),
        }

    return models.Shape(build, 36, patches, axes=3)


@pytest.mark.parametrize("make", [llava, qwen])
def test_the_limit_hands_over_as_many_tokens(
    tokens: ModuleType, models: ModuleType, make: Callable[[ModuleType], Any]
) -> None:
    shape = make(models)
    model = shape.model("cpu", torch.float32)
    lengths: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        lengths.append(kwargs["inputs_embeds"].shape[1])

    model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    bench = tokens.Bench(model, shape, 2, Fraction(1, 4), "cpu")
    with torch.inference_mode():
        off = bench.first()
        limit = bench.sliced()
        with bench.applied():
            ours = bench.first()
        assert torch.equal(bench.first(), off)
        words = models.WORDS
        assert lengths == [
            shape.tokens + words,
            shape.tokens // 4 + words,
            shape.tokens // 4 + words,
            shape.tokens + words,
        ]
        assert off.shape == limit.shape == ours.shape == (2, 1, 100)
        choosing = bench.choosing()
        with bench.applied():
            step: Any = choosing()
            assert bench.answer(3).shape == (2, shape.tokens + words + 3)
    assert step.given["inputs_embeds"].shape[1] == shape.tokens // 4 + words
