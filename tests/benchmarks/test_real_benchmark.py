"""The statistics of the benchmarks on real data, against known answers."""

from __future__ import annotations

import copy
import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.hosts.zoo import TIMM, pixels, wild


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "real")
    return importlib.import_module("classification")


def test_recall_of_known_rankings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "real")
    retrieval = importlib.import_module("retrieval")
    # 12 images; image i prefers its own captions, but image 0 prefers those of image 1
    similarity = torch.zeros(12, 60)
    for image in range(12):
        similarity[image, 5 * image : 5 * image + 5] = 1
    similarity[0, 5:10] = 2
    hits = retrieval.recall(similarity)
    assert {k: v.mean().item() for k, v in hits["i2t"].items()} == {
        1: 11 / 12, 5: 11 / 12, 10: 1.0
    }  # fmt: skip
    # captions of image 1 are now nearer to image 0, and find their own image second
    assert hits["t2i"][1].mean().item() == pytest.approx(55 / 60)
    assert hits["t2i"][5].mean().item() == 1.0


def test_divergence_of_what_a_query_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "real")
    retrieval = importlib.import_module("retrieval")
    base = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    moved = torch.tensor([[0.0, 1.0], [0.0, 0.5]])
    kl = retrieval.divergence(moved, base, 2.0)
    p = 1 / (1 + math.exp(-2))  # of the first image: (p, 1 - p) to (1 - p, p)
    assert kl["i2t"].tolist() == pytest.approx([(2 * p - 1) * 2, 0.0])
    # the first caption chose the first image, (2, 0), and is now undecided, (0, 0)
    known = p * math.log(2 * p) + (1 - p) * math.log(2 - 2 * p)
    assert kl["t2i"].tolist()[0] == pytest.approx(known)
    assert {w: v.sum().item() for w, v in retrieval.divergence(base, base, 2.0).items()} == {
        "i2t": 0.0, "t2i": 0.0
    }  # fmt: skip


def test_per_image_results(bench: ModuleType) -> None:
    reference = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
    logits = torch.tensor([[0.0, 2.0], [0.0, 1.0]]).double()
    result = bench.Result.of(logits, reference, torch.tensor([0, 1]))
    assert result.right.tolist() == [0.0, 1.0]
    assert result.same.tolist() == [0.0, 1.0]
    # softmax(2, 0) = (p, 1 - p): KL = (2 p - 1) * 2
    p = 1 / (1 + math.exp(-2))
    assert result.kl.tolist() == pytest.approx([2 * (2 * p - 1), 0.0])
    assert bench.Result.of(logits, reference, None).summary()["accuracy"] is None


@torch.no_grad()
def test_pruned_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "real")
    compressed = importlib.import_module("compressed")
    plain: Any = wild(VisionTransformer(**TIMM))
    x = pixels()
    sparse, narrow, masked = (copy.deepcopy(plain) for _ in range(3))
    compressed.zeroed(sparse)
    weight = sparse.blocks[0].mlp.fc1.weight
    assert (weight == 0).double().mean().item() == pytest.approx(compressed.ZEROED, abs=0.01)
    assert (
        weight[weight != 0].abs().min() >= plain.blocks[0].mlp.fc1.weight[weight == 0].abs().max()
    )
    compressed.narrowed(narrow)
    for block, whole in zip(narrow.blocks, masked.blocks, strict=True):
        strength = whole.mlp.fc1.weight.norm(dim=1) * whole.mlp.fc2.weight.norm(dim=0)
        out = strength.argsort()[: len(strength) - block.mlp.fc1.out_features]
        assert len(out) == round(len(strength) * compressed.NARROWED)
        whole.mlp.fc2.weight[:, out] = 0  # nobody hears these neurons
    torch.testing.assert_close(narrow(x), masked(x))
    assert not torch.allclose(narrow(x), plain(x), atol=1e-4)
