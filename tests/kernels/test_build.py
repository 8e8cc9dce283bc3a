"""The compiler accepts every kernel: what the interpreter runs need not build.

A few forms here; ``python tests/kernels/build.py --all`` builds every width, for ROCm too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")
SMALLEST = 99 * 1024
"""Shared memory of one program on the smaller cards from compute capability 8.0 on."""


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_every_kernel_builds_and_fits(target: str, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("build.py")), target],
        env={**env, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout.splitlines()[-1])
    names = Counter(kernel for _, kernel, _ in built)
    assert set(names) == {f"{n}_kernel" for n in ("attend", "look", "best", "plan", "merge")}
    assert names["attend_kernel"] == 3
    assert {t for t, _, _ in built} == {target}
    assert max(shared for _, _, shared in built) <= SMALLEST
