"""How many operations a patched block adds: counts, since times on a shared machine say little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import turbovlm
from tests.hosts.zoo import pixels, wild
from turbovlm import Merge

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "host.py"


class Operations(TorchDispatchMode):
    """Names of operations that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (func.is_view or "view" in func.__name__):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def vit() -> Any:
    from timm.models.vision_transformer import VisionTransformer

    sizes: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "num_heads": 4}
    return wild(VisionTransformer(**sizes, depth=6, num_classes=0))


def operations(model: Any, x: torch.Tensor) -> list[str]:
    with torch.inference_mode():
        model(x)  # constants are made once
        with Operations() as seen:
            model(x)
    return seen.names


@pytest.mark.parametrize(
    ("setting", "merging", "carrying"),
    [(Merge(r=0), 0, 0), (Merge(r=(3, 0, 0, 0, 0, 0)), 1, 5), (Merge(r=3), 6, 0)],
)
def test_operations_of_a_block(setting: Merge, merging: int, carrying: int) -> None:
    """At most 48 more in a block that merges, 1 in a block that only carries sizes."""
    model, x = vit(), pixels()
    plain = operations(model, x)
    turbovlm.apply(model, setting)
    merged = operations(model, x)
    # at the head cls alone is read, and nothing is restored
    assert len(merged) - len(plain) <= 48 * merging + carrying
    assert (len(merged) > len(plain)) == (merging > 0)


def test_a_forward_never_waits_for_the_device() -> None:
    """None of the operations that read a value back, which would stop a GPU and a capture."""
    model, x = vit(), pixels()
    turbovlm.apply(model, Merge(r=3))
    waiting = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select"}
    names = {name.split(".")[0] for name in operations(model, x)}
    assert "topk" in names
    assert not names & waiting


def test_the_benchmark_counts_every_kind_of_block(tmp_path: Path) -> None:
    """With the kernels, at most 6 more in a block that merges and 1 in one that carries sizes."""
    pytest.importorskip("triton")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--rounds", "3", "--json"],
        env={**env, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for sides in found.values():
        assert list(sides) == ["unpatched", "untouched", "carrying", "merging"]
        assert sides["untouched"]["operations"] == sides["carrying"]["operations"] == 0
    assert 0 < found["kernels"]["merging"]["operations"] <= 6
    assert found["kernels"]["merging"]["operations"] < found["torch"]["merging"]["operations"] <= 44
