"""The benchmark of windows compares what it says it compares (no times here)."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@torch.inference_mode()
def test_windows_are_fused_with_the_same_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    windows = importlib.import_module("windows")
    tiny = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
    monkeypatch.setitem(windows.SHAPES, "small", tiny | {"fullatt_block_indexes": [1]})
    bench = windows.Bench("small", 140, 2, "cpu", "fp32")
    assert bench.patches.shape == (2 * 10 * 10, 1176)
    # windows of 8 x 8 patches, 8 x 2, 2 x 8 and 2 x 2: three lengths
    assert bench.compared() == {"calls": {"off": 2 * 4 + 2, "fused": 3 + 1}, "apart": 0.0}
    assert windows._counted(bench.run)[1] == 10  # undone
