"""Beside what many use today: diffusers' first-block cache, merging, and both, over whole runs.

    python benchmarks/generation/cached.py --threads 1 --clock cpu
    python benchmarks/generation/cached.py --device cuda --dtype bf16 --shape flux --pixels 1024

A transformer of FLUX's kind with random weights takes the Euler steps of one picture. The cache
(``FirstBlockCacheConfig``) leaves out all blocks but the first where the change of the first one's
residual from step to step is below a threshold. Random weights say nothing about a picture, so
the threshold only sets how many steps are left out, which is counted; what it costs must be looked
at with real weights. Destinations that are drawn anew in every step change the residual by
themselves, so merging is also tried with ``seed=None``. All sides run interleaved on the same
weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import turbovlm
from turbovlm.measure import Rounds, compare, environment
from turbovlm_workbench.load.share import share_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 4},
    "flux": {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24},
}
HEAD, WORDS, FACTOR = 64, 64, 16
"""Width of a head of the small shape, tokens of a prompt, pixels along a token."""


def denoiser(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A transformer with random weights."""
    head = 128 if name == "flux" else HEAD
    with device:
        model: Any = FluxTransformer2DModel(
            **SHAPES[name],
            attention_head_dim=head,
            in_channels=64,
            joint_attention_dim=256,
            pooled_projection_dim=64,
            axes_dims_rope=(head // 8, head * 7 // 16, head * 7 // 16),
        )
    return model.eval() if dtype == torch.float32 else model.to(dtype).eval()


class Run:
    """All steps of one picture.

    Attributes:
        tokens: of the picture.
    """

    def __init__(self, model: Any, pixels: int, steps: int) -> None:
        weight = next(model.parameters())
        self.model, self.steps, side = model, steps, pixels // FACTOR
        self.tokens = side * side
        make = partial(torch.randn, generator=torch.Generator().manual_seed(0))
        self.noise = make(1, self.tokens, 64).to(weight)
        self.prompt, self.pooled = make(1, WORDS, 256).to(weight), make(1, 64).to(weight)
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
        self.places, self.words = places.to(weight), torch.zeros(WORDS, 3).to(weight)
        self.times = torch.linspace(1, 0, steps + 1)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """The picture's tokens ``(1, N, 64)``."""
        x = self.noise
        if self.model.is_cache_enabled:
            self.model._reset_stateful_cache()
        for now, then in pairwise(self.times.tolist()):
            with self.model.cache_context("prompt"):
                change = self.model(
                    x,
                    encoder_hidden_states=self.prompt,
                    pooled_projections=self.pooled,
                    timestep=x.new_tensor([now]),
                    img_ids=self.places,
                    txt_ids=self.words,
                    return_dict=False,
                )[0]
            x = x + (then - now) * change
        return x

    def left_out(self) -> float:
        """Share of the steps that the cache leaves out."""
        seen: list[object] = []
        last = self.model.single_transformer_blocks[-1].proj_out
        handle = last.register_forward_hook(lambda *_: seen.append(None))
        self()
        handle.remove()
        return 1 - len(seen) / self.steps


def sides(model: Any, args: argparse.Namespace, pixels: int) -> dict[str, Run]:
    """Unmerged, and every threshold, merge and pair of them; "fixed" is ``seed=None``."""
    merges: dict[str, turbovlm.MergeRestore | None] = {"": None}
    for ratio in args.ratio:
        merges[f"merge {ratio:g}"] = turbovlm.MergeRestore(ratio=ratio)
        merges[f"merge {ratio:g}, fixed"] = turbovlm.MergeRestore(ratio=ratio, seed=None)
    found = {}
    for name, merge in merges.items():
        for threshold in (0.0, *args.threshold):
            twin: Any = share_weights(model)
            if threshold:
                twin.enable_cache(FirstBlockCacheConfig(threshold))
            if merge is not None:
                turbovlm.apply(twin, merge)
            parts = [name] * bool(name) + [f"cache {threshold:g}"] * bool(threshold)
            found[" + ".join(parts) or "off"] = Run(twin, pixels, args.steps)
    return found


def measure(model: Any, pixels: int, args: argparse.Namespace, progress: Progress) -> dict:
    """Check that each side changes the picture as it should, then time them."""
    runs = sides(model, args, pixels)
    whole = runs["off"]()
    skipped, apart = {}, {}
    for name, run in runs.items():
        skipped[name] = run.left_out() if run.model.is_cache_enabled else 0.0
        apart[name] = ((run() - whole).square().mean() / whole.square().mean()).item()
        # where no step is left out and nothing merged, it must be the same picture
        if (apart[name] > 0) != (skipped[name] > 0 or name.startswith("merge")):
            raise SystemExit(
                f"{name}: {skipped[name]:.0%} of the steps left out, yet {apart[name]}"
            )
    task = progress.add_task(f"{pixels} px", total=None)

    def show(done: int, rounds: int, name: str) -> None:
        progress.update(task, completed=done, total=rounds, description=f"{pixels} px: {name}")

    calls: dict[str, Callable[[], object]] = {**runs}
    rounds = Rounds(args.rounds, warmup=1, device=args.device, clock=args.clock)
    times = compare(calls, rounds, show)
    progress.remove_task(task)
    return {
        "pixels": pixels,
        "tokens": runs["off"].tokens,
        "seconds": {name: t.median_s for name, t in times.items()},
        "speedup": {name: asdict(t.speedup_over(times["off"])) for name, t in times.items()},
        "left_out": skipped,
        "apart": apart,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Speed-ups over the unmerged, uncached run."""
    shown = Table(
        "pixels", "tokens", "side", "seconds", "speed-up [95 %]", "steps left out", box=None
    )
    for row in rows:
        for name, seconds in row["seconds"].items():
            ratio = row["speedup"][name]
            text = "{value:.2f}x [{low:.2f}, {high:.2f}]".format(**ratio) if name != "off" else ""
            left = f"{row['left_out'][name]:.0%}"
            shown.add_row(
                str(row["pixels"]), str(row["tokens"]), name, f"{seconds:.3f}", text, left
            )
    return shown


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--shape", choices=list(SHAPES), default="small")
    p.add_argument("--pixels", type=int, nargs="+", default=[512, 1024])
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--ratio", type=float, nargs="+", default=[0.5])
    p.add_argument("--threshold", type=float, nargs="+", default=[0.6])
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    p.add_argument("--threads", type=int)
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    model = denoiser(args.shape, device, DTYPES[args.dtype])
    with Progress(console=Console(stderr=True)) as progress:
        rows = [measure(model, pixels, args, progress) for pixels in args.pixels]
    if args.json:
        data = {"shape": args.shape, "rows": rows, "environment": environment(device)}
        args.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    Console(width=120).print(table(rows))


if __name__ == "__main__":
    main()
