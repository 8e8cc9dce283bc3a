"""Builds every kernel for devices that are not there, and prints what each one needs.

    python tests/kernels/build.py --all

Triton compiles for a target by name. The functions that launch are called as they are, with
tensors on the CPU; in the place of a launch stands the build.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from turbovlm.kernels.triton import attend, best, look, merge, plan

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from absent import TARGETS, absent  # a benchmark, which is no package

FEW = {torch.bfloat16: (64, 88), torch.float32: (256,)}
ALL = dict.fromkeys(FEW, (16, 40, 64, 72, 88, 128, 144, 160, 192, 256))


def calls(widths_of: Mapping[torch.dtype, tuple[int, ...]]) -> None:
    """One launch of every kernel in the forms that models need."""
    for dtype, widths in widths_of.items():
        for width in widths:
            joint = torch.empty(1, 200, 3, 2, width, dtype=dtype)
            q, k, v = joint.permute(2, 0, 3, 1, 4).unbind(0)
            attend.launch_attend(q, k, v, torch.empty(1, 200), 0.1)
    for dtype in (torch.bfloat16, torch.float32):
        look.launch_look(torch.empty(1, 2, 200, 72, dtype=dtype), torch.empty(1, 2, 72), None, 0.1)
        x, index = torch.empty(1, 200, 128, dtype=dtype), torch.zeros(1, 50, dtype=torch.int64)
        keep = torch.zeros(1, 150, dtype=torch.int64)
        merge.launch_merge(x, x, torch.empty(1, 200), (index, index, keep))
    for width in widths_of[torch.float32]:
        best.launch_best(torch.empty(1, 200, width), 1, None)
    count = torch.zeros(1, 1, dtype=torch.int64)
    for tokens, padding in ((200, (count, count)), (8192, None)):
        score = torch.empty(1, tokens // 2)
        plan.launch_plan(
            score, score.int(), torch.empty(1, 16, tokens), (8, tokens, 0), (None, 1.0), padding
        )


def main() -> None:
    built: list[tuple[str, str, int]] = []
    names = [word for word in sys.argv[1:] if word in TARGETS]
    for name in names or TARGETS:

        def keep(kernel: str, made: Any, name: str = name) -> None:
            built.append((name, kernel, made.metadata.shared))

        with absent(name, keep):
            calls(ALL if "--all" in sys.argv else FEW)
    print(json.dumps(built))


if __name__ == "__main__":
    main()
