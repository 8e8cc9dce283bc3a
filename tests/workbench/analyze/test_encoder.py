"""The analysis of real (random) models against tokens and attention taken from their forward."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from torch import Tensor

import turbovlm
from tests.hosts.zoo import TEXT, padding, words
from tests.workbench.build import SIZES, TINY, wild
from turbovlm import Merge
from turbovlm.errors import InputError, UnknownArchitecture
from turbovlm_workbench.analyze.encoder import analyze_encoder


def literal(model: Any, x: Tensor) -> list[tuple[float, float]]:
    """Redundancy and concentration of every block of a timm ViT, one image at a time."""
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in model.blocks]
    for image in x:
        y = model._pos_embed(model.patch_embed(image[None]))
        for block, (redundancy, concentration) in zip(model.blocks, found, strict=True):
            attention, h = block.attn, block.norm1(y)[0]
            heads, d = attention.num_heads, h.shape[-1] // attention.num_heads
            q, k, _ = attention.qkv(h).reshape(len(h), 3, heads, d).permute(1, 2, 0, 3)
            rows = [(q[n, 0] @ k[n].T / math.sqrt(d)).softmax(-1) for n in range(heads)]
            value = torch.stack(rows).mean(0)[1:]
            top = value.sort(descending=True).values[: len(value) // 4]
            concentration.append(float(top.sum() / value.sum()))
            y = y + block.ls1(block.attn(block.norm1(y)))
            patches = y[0, 1:]
            n = len(patches)
            pairs = torch.nn.functional.cosine_similarity(patches[:, None], patches[None], dim=-1)
            redundancy.append(float((pairs.sum() - pairs.trace()) / (n * (n - 1))))
            y = y + block.ls2(block.mlp(block.norm2(y)))
    return [(sum(a) / len(a), sum(b) / len(b)) for a, b in found]


@torch.no_grad()
def test_an_encoder_equals_the_literal_computation() -> None:
    model = wild(timm.create_model(TINY))
    x = torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    found = analyze_encoder(model, model, [x[:2], x[2:]], {"turbo r=5": Merge(r=5)}, "tiny")
    assert list(found.sides) == ["unmerged", "turbo r=5"]
    assert (found.model, found.guide, found.samples) == ("tiny", "cls", 3)
    for block, (redundancy, concentration) in zip(
        found.sides["unmerged"], literal(model, x), strict=True
    ):
        assert block.redundancy == pytest.approx(redundancy, abs=1e-5)
        assert block.concentration == pytest.approx(concentration, abs=1e-5)
        assert (block.tokens, block.merge_error) == (101, None)
    merged = found.sides["turbo r=5"]
    assert [block.tokens for block in merged] == [96, 91, 86, 81, 76, 71]
    assert all(block.merge_error and 0 < block.merge_error < 1 for block in merged)
    # before the first merge nothing differs, after it everything does
    first = found.sides["unmerged"][0]
    assert merged[0].redundancy == pytest.approx(first.redundancy, abs=1e-6)
    assert merged[3].redundancy != pytest.approx(found.sides["unmerged"][3].redundancy, abs=1e-4)
    for side in found.sides.values():
        assert sum(block.time for block in side) == pytest.approx(1)
    with pytest.raises(turbovlm.TurboError, match="not patched"):
        turbovlm.remove(model)


@torch.no_grad()
def test_padding_of_a_text_encoder_does_not_count() -> None:
    config = hf.BertConfig(**TEXT)
    model = wild(hf.BertModel(config, add_pooling_layer=False))
    ids = words()
    real = padding(ids.shape[1], left=29)

    def forward(rows: slice) -> object:
        return model(input_ids=ids[rows], attention_mask=real[rows].long())

    together = analyze_encoder(model, forward, [slice(None)], {"turbo r=2": Merge(r=2)})
    alone = [
        analyze_encoder(
            model,
            lambda r: model(input_ids=ids[r][None, real[r]]),
            [row],
            {"turbo r=2": Merge(r=2)},
        )
        for row in range(len(ids))
    ]
    for side in together.sides:
        for index, block in enumerate(together.sides[side]):
            for name in ("redundancy", "concentration", "tokens"):
                values = [getattr(one.sides[side][index], name) for one in alone]
                assert getattr(block, name) == pytest.approx(sum(values) / len(values), abs=1e-4)


def test_models_without_cls_are_guided_by_the_mean() -> None:
    config = hf.SiglipVisionConfig(**SIZES)
    model = wild(hf.SiglipVisionModel(config))
    found = analyze_encoder(model, model, [torch.randn(2, 3, 32, 32)], {})
    assert (found.guide, list(found.sides), found.config) == ("mean", ["unmerged"], None)
    assert found.to_dict()["sides"]["unmerged"][0]["tokens"] == 64


def test_nothing_to_analyze_is_named() -> None:
    model = wild(timm.create_model(TINY))
    with pytest.raises(InputError, match="at least one batch"):
        analyze_encoder(model, model, [], {})
    with pytest.raises(UnknownArchitecture, match="no row describes Linear"):
        analyze_encoder(torch.nn.Linear(2, 2), print, [1], {})
