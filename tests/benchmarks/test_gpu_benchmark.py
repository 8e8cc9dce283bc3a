"""The GPU benchmark runs anywhere on a tiny model, and needs nothing but torch and timm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("timm")

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
RUN = """
import runpy, sys
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    foreign = ("turbovlm_workbench", "turbovlm_lab", "transformers", "rich", "diffusers")
    print("foreign:", *(name for name in foreign if name in sys.modules))
"""


def benchmark(folder: Path, *more: str, **environment: str) -> tuple[dict[str, Any], str]:
    written = folder / "gpu.json"
    given = ["--smoke", "--device", "cpu", "--json", str(written), *more]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(BENCHMARK), *given],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(written.read_text(encoding="utf-8")), done.stdout


def test_every_cell_is_measured_on_a_cpu(tmp_path: Path) -> None:
    found, printed = benchmark(tmp_path)
    assert printed.splitlines()[-1] == "foreign:"
    assert all(row["ok"] for row in found["checks"])
    assert "merging changes the output" in [row["what"] for row in found["checks"]]
    cells = {(row["mode"], row["schedule"]): row for row in found["cells"]}
    assert set(cells) == {
        ("eager", "r"),
        ("eager", "speedup=1.4"),
        ("eager", "speedup=1.8"),
        ("compile", "speedup=1.4"),
    }
    for row in cells.values():
        assert row["errors"] == {}
        assert set(row["ms"]) == {"off", "limit", "torch"}
        assert min(row["ms"].values()) > 0
    assert cells["eager", "r"]["tokens"] == [14, 11, 8, 5]
    fewer = [cells["eager", f"speedup={s}"]["tokens"] for s in ("1.4", "1.8")]
    assert sum(fewer[0]) > sum(fewer[1])
    assert set(found["attention"][0]["ms"]) == {"none", "mask"}


def test_with_kernels_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    found, _ = benchmark(tmp_path, "--parts", "checks", "attention", TRITON_INTERPRET="1")
    checks = {row["what"]: row for row in found["checks"]}
    assert {"kernels, d=24, torch.float32", "kernels as torch"} <= set(checks)
    assert checks["kernels as torch"]["far"] < 1e-5
    assert checks["kernels, d=24, torch.float32"]["far"].keys() == {"attend", "unit", "merge"}
    assert found["cells"] == []
    assert found["attention"][0]["difference_from_mask"] < 1e-5
