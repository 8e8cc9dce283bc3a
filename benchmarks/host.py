"""What a patched block costs the host: Python and launches, whatever the device computes.

A tiny model on the CPU spends nearly all of its time there, so no GPU is needed. Each figure is
the least CPU time of one block over many runs, in one process, and the ratio to the unpatched
block; operations are those that are not views.

    python benchmarks/host.py
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import turbovlm
from turbovlm import Merge
from turbovlm.plug.encoder.state import EncoderCall, EncoderPatch, Reading
from turbovlm.plug.encoder.tokens import Tokens
from turbovlm.plug.swap import site_of

DEPTH = 12
LIMITS = {"merging": 2.5, "carrying": 1.5}


class Operations(TorchDispatchMode):
    """Counts operations that compute or copy; views are free on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or "view" in func.__name__)
        return func(*args, **(kwargs or {}))


def least(run: Callable[[], object], rounds: int) -> float:
    """Least CPU time of this thread in microseconds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.thread_time()
        run()
        best = min(best, time.thread_time() - start)
    return best * 1e6


def model() -> Any:
    return timm.models.vision_transformer.VisionTransformer(
        img_size=64, patch_size=8, embed_dim=32, depth=DEPTH, num_heads=4, num_classes=0
    ).eval()


def step(block: nn.Module, patch: EncoderPatch, x: Tensor) -> Callable[[], object]:
    """One block in the middle of a forward, after a first merge."""

    def run() -> object:
        call = EncoderCall(Reading(last=False), declared=True)
        call.tokens = Tokens(x.shape[1], torch.ones(1, x.shape[1]))
        before = patch.begin(call)
        try:
            return block(x)
        finally:
            patch.end(before)

    return run


def measure(rounds: int) -> dict[str, dict[str, float]]:
    net, x = model(), torch.randn(1, 65, 32)
    block = net.blocks[DEPTH // 2]
    sides: dict[str, Callable[[], object]] = {"unpatched": lambda: block(x)}
    found = {"unpatched": {"microseconds": least(sides["unpatched"], rounds)}}
    with Operations() as plain:
        block(x)
    for name, r in (("untouched", 0), ("carrying", 0), ("merging", 2)):
        turbovlm.apply(net, Merge(r=r))
        run = step(block, site_of(block).patch, x)
        if name == "untouched":
            call = EncoderCall(Reading(last=False), declared=True)
            site_of(block).patch.begin(call)
            run = sides["unpatched"]
        with Operations() as counted:
            run()
        found[name] = {
            "microseconds": least(run, rounds),
            "operations": counted.count - plain.count,
        }
        turbovlm.remove(net)
    for side in found.values():
        side["ratio"] = side["microseconds"] / found["unpatched"]["microseconds"]
    return found


def main() -> None:
    p = argparse.ArgumentParser(description="What a patched block costs the host.")
    p.add_argument("--rounds", type=int, default=2000)
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        found = measure(args.rounds)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for name, side in found.items():
        limit = f"  (aim: at most {LIMITS[name]}x)" if name in LIMITS else ""
        extra = f"  {side['operations']:+.0f} operations" if "operations" in side else ""
        print(f"{name:10s} {side['microseconds']:7.1f} us  {side['ratio']:.2f}x{extra}{limit}")


if __name__ == "__main__":
    main()
