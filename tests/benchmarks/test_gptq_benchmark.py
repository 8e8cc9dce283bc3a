"""GPTQ of the benchmark: better than rounding on the same grid, packed, and merging on top."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gptqmodel") is None, reason="pip install 'turbovlm[gptq]'"
)
FOLDER = Path(__file__).parents[2] / "benchmarks" / "vlm"
# In a process of its own: GPTQModel sets variables of the environment when it is imported.
CHECK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from torch import nn
from quantized import Grid, gptq, nearest, quantize_layers, weight_bytes

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(48, 40), nn.Linear(40, 48, bias=False)
    def forward(self, x):
        return x + self.second(torch.relu(self.first(x)))

torch.manual_seed(0)
x = torch.randn(2, 300, 48) @ torch.randn(48, 48)  # correlated, as what a layer reads is
found = {}
for bits in (8, 4):
    for way in (nearest, gptq):
        torch.manual_seed(1)
        blocks = nn.ModuleList([Block(), Block()])
        whole = nn.Sequential(*blocks)
        with torch.no_grad():
            before = whole(x)
            size = weight_bytes(blocks)
            first = blocks[0].first
            found_first = way(first, [x], Grid(bits))
            steps = found_first.weight / found_first.scale
            quantize_layers(blocks, lambda: whole(x), way, Grid(bits))
            after = nn.Sequential(*blocks)(x)
            packed = blocks[0].first(x)
            dense = x @ found_first.weight.T + first.bias
        found[f"{way.__name__} {bits}"] = {
            "error": ((after - before).square().mean() / before.square().mean()).item(),
            "off grid": (steps - steps.round()).abs().max().item(),
            "levels": len(steps.round().unique()),
            "packed": ((packed - dense).abs().max() / dense.abs().max()).item(),
            "share": weight_bytes(blocks) / size,
        }
print("found " + json.dumps(found))
"""


def test_gptq_and_rounding_on_one_grid() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(FOLDER)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("found "))
    found = json.loads(line.removeprefix("found "))
    for bits in (8, 4):
        rounded, better = found[f"nearest {bits}"], found[f"gptq {bits}"]
        assert 0 < better["error"] < 0.8 * rounded["error"]
        for one in (rounded, better):
            assert one["off grid"] < 1e-3
            assert one["levels"] <= 2**bits
            assert one["packed"] < 2e-3  # float16 scales
    assert found["gptq 4"]["error"] > 10 * found["gptq 8"]["error"]
    # small layers: an index of columns and float16 scales weigh a third of the 4 bit weights
    assert found["gptq 4"]["share"] < found["gptq 8"]["share"] < 0.45
