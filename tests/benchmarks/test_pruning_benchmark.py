"""Structured pruning of the benchmarks: what is removed, and that the rest computes the same."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import turbovlm
from tests.hosts.zoo import TIMM, pixels, wild
from turbovlm_lab import captioner
from turbovlm_workbench.paper.upop import UPopCaptioner


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "real")
    return importlib.import_module("pruning")


def test_a_vit_without_channels_that_do_nothing(bench: ModuleType) -> None:
    """What is silent goes first, and without it the model is the same: scales too."""
    plain: Any = wild(VisionTransformer(**TIMM))
    with torch.no_grad():
        for block in plain.blocks:
            block.mlp.fc2.weight[:, ::2] = 0.0
            head = block.attn.head_dim
            silent = [i for i in range(block.attn.attn_dim) if i % head < head // 2]
            for part in range(3):
                rows = [part * block.attn.attn_dim + i for i in silent]
                block.attn.qkv.weight[rows], block.attn.qkv.bias[rows] = 0.0, 0.0
            block.attn.proj.weight[:, silent] = 0.0
            block.mlp.fc1.weight[::2], block.mlp.fc1.bias[::2] = 0.0, 0.0
    x = pixels()
    narrow = bench.pruned_vit(plain, x, 0.5)
    for before, after in zip(plain.blocks, narrow.blocks, strict=True):
        assert after.attn.num_heads == before.attn.num_heads
        assert after.attn.head_dim == before.attn.head_dim // 2
        assert after.mlp.fc1.out_features == before.mlp.fc1.out_features // 2
    with torch.no_grad():
        assert torch.allclose(narrow(x), plain(x), atol=1e-5)
        with turbovlm.applied(narrow, turbovlm.Merge(r=4)) as run:
            assert not torch.allclose(narrow(x), plain(x), atol=1e-4), "merging changed nothing"
            assert run.trace.tokens[-1] < 65


def test_a_narrow_captioner_is_upops(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    del bench  # which has put the folder on the path
    command = importlib.import_module("pruned_captioner")
    monkeypatch.setattr(command, "CALIBRATION", 4)
    monkeypatch.setattr(command, "BATCH", 2)
    whole, _ = captioner.load_captioner()
    half = command.pruned(whole)
    assert type(half) is UPopCaptioner
    channels = sum(half.config.widths.values())
    full = sum(32 if "att" in name else 512 for name in half.config.widths)
    assert channels == pytest.approx(full / 2, rel=0.02)
    heads = [width for name, width in half.config.widths.items() if "att" in name]
    assert sum(heads) == pytest.approx(16 * len(heads), rel=0.1)  # heads lose half as MLPs do
    monkeypatch.setattr(command, "SHARE", 0.02)
    scenes = command.Scenes(2)
    near = command.pruned(whole)
    with torch.no_grad():
        base, close, far = (scenes.words(model) for model in (whole, near, half))
    assert 0 < scenes.kl(close, base).mean() < 0.1 * scenes.kl(far, base).mean()
    before = scenes.kl(far, base).mean()
    command.train_on(half, whole, 2)
    assert scenes.kl(scenes.words(half), base).mean() != before
