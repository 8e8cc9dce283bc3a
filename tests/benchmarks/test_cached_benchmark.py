"""Merging beside First Block Cache: a plan drawn anew in every step keeps all steps."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")


def test_the_cache_leaves_out_steps_where_the_plan_is_fixed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "generation")
    cached = importlib.import_module("cached")
    torch.manual_seed(0)
    model = cached.denoiser("small", torch.device("cpu"), torch.float32)
    runs = cached.sides(model, argparse.Namespace(ratio=[0.5], threshold=[0.6], steps=10), 256)
    assert runs["off"].tokens == 256
    assert runs["cache 0.6"].left_out() > 0.3
    drawn = runs["merge 0.5 + cache 0.6"].left_out()
    assert drawn < runs["merge 0.5, fixed + cache 0.6"].left_out()
