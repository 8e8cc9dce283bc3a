"""What a patched block costs the host: Python and launches, whatever the device computes.

A tiny model on the CPU spends nearly all of its time there, so no GPU is needed. Each figure is
the least CPU time of one block over many runs, in one process, and the ratio to the unpatched
block; operations are those that are not views, once constants have been made.

"kernels" is what a GPU's host does: Triton's own bookkeeping runs, for a device that is not there,
and nothing is launched. The kernels are counted among the operations.

    python benchmarks/host.py
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import turbovlm
from turbovlm import Merge
from turbovlm.kernels import switch
from turbovlm.plug.encoder.state import EncoderCall, EncoderPatch, Reading
from turbovlm.plug.encoder.tokens import Tokens
from turbovlm.plug.swap import site_of

DEPTH = 12
LIMITS = {"merging": 2.5, "carrying": 1.5}
SIDES = (("untouched", 0), ("carrying", 0), ("merging", 2))


class Operations(TorchDispatchMode):
    """Counts operations that compute or copy, but neither views nor memory without values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        free = func.is_view or "view" in func.__name__ or "empty" in func.__name__
        self.count += not free
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
        img_size=64, patch_size=8, embed_dim=64, depth=DEPTH, num_heads=4, num_classes=0
    ).eval()


def step(
    block: nn.Module, patch: EncoderPatch, tokens: Tokens | None, x: Tensor
) -> Callable[[], object]:
    """One block in the middle of a forward, after a first merge."""

    def run() -> object:
        call = EncoderCall(Reading(last=False), declared=True)
        call.tokens = tokens
        before = patch.begin(call)
        try:
            return block(x)
        finally:
            patch.end(before)

    return run


@contextmanager
def kernels(launched: list[str]) -> Iterator[None]:
    """Triton's kernels are looked up for CPU tensors and never launched."""
    from absent import absent

    obstacle = switch.obstacle
    switch.obstacle = lambda kind, index: None
    turbovlm.use_kernels("triton")
    try:
        with absent("sm_90", lambda name, _: launched.append(name)):
            yield
    finally:
        turbovlm.use_kernels("auto")
        switch.obstacle = obstacle


def measure(rounds: int, launched: list[str]) -> dict[str, dict[str, float]]:
    """Every kind of block, with the kernels that are in use now."""
    net, x = model(), torch.randn(1, 65, 64)
    block = net.blocks[DEPTH // 2]
    plain = counted(lambda: block(x), launched)
    found = {"unpatched": {"microseconds": least(lambda: block(x), rounds)}}
    for name, r in SIDES:
        turbovlm.apply(net, Merge(r=r))
        tokens = None if name == "untouched" else Tokens(x.shape[1], torch.ones(1, x.shape[1]))
        run = step(block, site_of(block).patch, tokens, x)
        operations = counted(run, launched) - plain
        found[name] = {"microseconds": least(run, rounds), "operations": operations}
        turbovlm.remove(net)
    for side in found.values():
        side["ratio"] = side["microseconds"] / found["unpatched"]["microseconds"]
    return found


def counted(run: Callable[[], object], launched: list[str]) -> int:
    """Operations and kernels of a run after the first."""
    run()
    launched.clear()
    with Operations() as operations:
        run()
    return operations.count + len(launched)


def main() -> None:
    p = argparse.ArgumentParser(description="What a patched block costs the host.")
    p.add_argument("--rounds", type=int, default=2000)
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(1)
    launched: list[str] = []
    with torch.inference_mode():
        found = {"torch": measure(args.rounds, launched)}
        if importlib.util.find_spec("triton") is not None:
            with kernels(launched):
                found["kernels"] = measure(args.rounds, launched)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for kind, sides in found.items():
        print(kind)
        for name, side in sides.items():
            limit = f"  (aim: at most {LIMITS[name]}x)" if name in LIMITS else ""
            extra = f"  {side['operations']:+.0f} operations" if "operations" in side else ""
            print(
                f"  {name:10s} {side['microseconds']:7.1f} us  {side['ratio']:.2f}x{extra}{limit}"
            )


if __name__ == "__main__":
    main()
