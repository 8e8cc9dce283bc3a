"""What `turbovlm.fuse_attention` saves in a packed tower with windows: Qwen2.5-VL's.

    python benchmarks/windows.py --threads 1 --clock cpu
    python benchmarks/windows.py --device cuda --shape 3b --pixels 1008 --images 1 4

Off is transformers' own code with scaled-dot-product attention, which it calls once a window. Both
sides run interleaved on one model in memory, with random weights; no token is merged. Before the
clock starts both outputs are compared and the calls of attention are counted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sides import DTYPES
from torch.overrides import TorchFunctionMode
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

import turbovlm
from turbovlm.measure import Rounds, Variant, compare, environment

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "depth": 4,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_heads": 4,
        "out_hidden_size": 256,
        "fullatt_block_indexes": [3],
    },
    "3b": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}


class Count(TorchFunctionMode):
    """Counts calls of fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


class Bench:
    """One tower and the pictures that it gets."""

    def __init__(self, shape: str, pixels: int, images: int, device: str, dtype: str) -> None:
        torch.manual_seed(0)
        config: Any = Qwen2_5_VLVisionConfig(**SHAPES[shape])
        tower: Any = Qwen2_5_VisionTransformerPretrainedModel
        model = tower._from_config(config, attn_implementation="sdpa")
        self.model = model.to(device, DTYPES[dtype]).eval()
        side = pixels // config.patch_size // config.spatial_merge_size * config.spatial_merge_size
        self.grids = torch.tensor([(1, side, side)] * images, device=device)
        width = 3 * config.temporal_patch_size * config.patch_size**2
        self.patches = torch.randn(images * side * side, width).to(device, DTYPES[dtype])

    def run(self) -> torch.Tensor:
        """Cells for the language model."""
        return self.model(self.patches, grid_thw=self.grids).pooler_output

    @contextmanager
    def fused(self) -> Iterator[None]:
        """With segments of one length in one call."""
        turbovlm.fuse_attention(self.model)
        try:
            yield
        finally:
            turbovlm.unfuse_attention(self.model)

    def compared(self) -> dict[str, Any]:
        """Calls of attention on both sides, and how far their outputs are apart."""
        expected, host = _counted(self.run)
        with self.fused():
            found, ours = _counted(self.run)
        apart = (found.float() - expected.float()).abs().max().item()
        return {"calls": {"off": host, "fused": ours}, "apart": apart}


def _counted(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    with Count() as count:
        out = run()
    return out, count.calls


@torch.inference_mode()
def measure(args: argparse.Namespace, pixels: int, images: int) -> dict[str, Any]:
    dtype = args.dtype or ("fp32" if args.device == "cpu" else "bf16")
    bench = Bench(args.shape, pixels, images, args.device, dtype)
    facts = bench.compared()
    variants = {"off": Variant(bench.run), "fused": Variant(bench.run, bench.fused)}
    times = compare(variants, Rounds(args.rounds, device=args.device, clock=args.clock))
    return {
        "shape": args.shape,
        "dtype": dtype,
        "pixels": pixels,
        "images": images,
        "tokens": len(bench.patches),
        **facts,
        "ms": {side: t.median_s * 1e3 for side, t in times.items()},
        "iqr_ms": {side: t.iqr * 1e3 for side, t in times.items()},
        "speedup": asdict(times["fused"].speedup_over(times["off"])),
        "seconds": {side: t.seconds for side, t in times.items()},
    }


def table(results: list[dict[str, Any]]) -> Table:
    shown = Table(title="attention within windows, Qwen2.5-VL's tower", title_style="bold")
    for head in ("shape", "px", "images", "tokens", "calls", "off ms", "fused", "speed-up"):
        shown.add_column(head, justify="left" if head == "shape" else "right")
    shown.add_column("apart", justify="right")
    for row in results:
        speed = row["speedup"]
        shown.add_row(
            f"{row['shape']} {row['dtype']}",
            *(str(row[name]) for name in ("pixels", "images", "tokens")),
            "{off} to {fused}".format(**row["calls"]),
            *(f"{row['ms'][side]:.1f}" for side in ("off", "fused")),
            f"{speed['value']:.2f}x [{speed['low']:.2f}, {speed['high']:.2f}]",
            f"{row['apart']:.1e}" if row["apart"] else "0",
        )
    return shown


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--shape", choices=SHAPES, default="small")
    p.add_argument("--pixels", nargs="+", type=int, default=[448, 504], help="side of a picture")
    p.add_argument("--images", nargs="+", type=int, default=[1, 4], help="pictures in one pack")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", choices=DTYPES, help="default bf16 on an accelerator, else fp32")
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--threads", type=int, help="CPU threads; default torch's own")
    p.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, steady on a busy machine; only with --threads 1",
    )
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    results = [measure(args, pixels, n) for pixels in args.pixels for n in args.images]
    Console().print(table(results))
    if args.json:
        facts = {**environment(args.device), "clock": args.clock, "results": results}
        args.json.write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
