"""One forward in the place of whole pictures: how far merging moves the guided prediction.

    python benchmarks/generation/forward.py
    python benchmarks/generation/forward.py --ratio 0.3 --method turbo redundancy \\
        --setting '{}' '{"plan": "module"}' '{"proportional": false}'

Pictures of two runs drift apart step by step, so that small differences drown. Here the lab's
painter sees scenes at equal levels of noise, once unmerged and once with every method, and what
counts is the squared difference of its guided predictions, as a share of the unmerged one's
square. A ratio is to the first method and setting that were given, with its 95 % interval over
scenes (the same noise for all).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import METHODS, Candidate, add_setting, candidates
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from turbovlm.errors import TurboError
from turbovlm_lab import painter
from turbovlm_lab.grammar import describe
from turbovlm_lab.scenes import layout, scene

TIMES = (950, 800, 600, 400, 200)
SAMPLES = 10_000


@dataclass(frozen=True)
class Sight:
    """What the painter sees in one forward: latents twice, prompts empty and real.

    Without guidance (a scale of 1) latents once, and the real prompts.
    """

    time: int
    latent: Tensor
    text: Tensor

    def guided(self, unet: Any, guidance: float) -> Tensor:
        """``(B, 4, 32, 32)`` the prediction with guidance."""
        out = unet(self.latent, self.time, encoder_hidden_states=self.text).sample
        if guidance == 1:
            return out
        empty, told = out.chunk(2)
        return empty + guidance * (told - empty)


def sights(pipe: Any, args: argparse.Namespace) -> Iterator[Sight]:
    """Batches of scenes in order, each at every time."""
    seeds = painter.subjects(args.split, args.first, args.scenes)
    for start in range(0, len(seeds), args.batch):
        part = seeds[start : start + args.batch]
        pixels = painter.shrink([scene(seed).image for seed in part])
        clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
        told, empty = pipe.encode_prompt(
            [describe(layout(seed)) for seed in part], "cpu", 1, True, [""] * len(part)
        )
        for time in args.time:
            noise = torch.stack([_noise(seed, time, clean[0].shape) for seed in part])
            steps = torch.full((len(part),), time)
            latent = pipe.scheduler.add_noise(clean, noise, steps)
            if args.guidance == 1:
                yield Sight(time, latent, told)
            else:
                yield Sight(time, latent.repeat(2, 1, 1, 1), torch.cat([empty, told]))


def _noise(seed: int, time: int, shape: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1000 + time)
    return torch.randn(tuple(shape), generator=generator)


@torch.no_grad()
def errors(pipe: Any, found: Sequence[Candidate], args: argparse.Namespace) -> NDArray[Any]:
    """``(candidates, scenes, times)`` squared difference over the unmerged prediction's square."""
    seen = list(sights(pipe, args))
    plain = [sight.guided(pipe.unet, args.guidance) for sight in seen]
    tokens = pipe.unet.config.sample_size**2
    whole = []
    for candidate in track(found, "methods", transient=True):
        torch.manual_seed(0)  # tomesd draws its destinations from a copy of this generator
        candidate.apply(pipe, tokens)
        try:
            rows = [
                _squares(sight.guided(pipe.unet, args.guidance) - was) / _squares(was)
                for sight, was in zip(seen, plain, strict=True)
            ]
        finally:
            candidate.remove(pipe)
        times = len(args.time)
        by_time = [torch.cat(rows[place::times]) for place in range(times)]
        whole.append(torch.stack(by_time, 1).numpy())
    return np.stack(whole)


def _squares(x: Tensor) -> Tensor:
    return x.double().square().mean((1, 2, 3))


def ratio(own: NDArray[Any], other: NDArray[Any]) -> tuple[float, float, float]:
    """Mean over mean of errors ``(scenes,)``, with its 95 % bootstrap interval over scenes."""
    drawn = np.random.default_rng(0).integers(0, len(own), (SAMPLES, len(own)))
    low, high = np.quantile(own[drawn].mean(1) / other[drawn].mean(1), [0.025, 0.975])
    return float(own.mean() / other.mean()), float(low), float(high)


def table(found: Sequence[Candidate], values: NDArray[Any], args: argparse.Namespace) -> Table:
    shown = Table(title=f"error of one guided forward, {args.scenes} scenes", box=None)
    shown.add_column("ratio")
    shown.add_column("method and setting")
    for head in ("error", "of the first's [95 %]", *(f"t = {time}" for time in args.time)):
        shown.add_column(head, justify="right", no_wrap=True)
    first: dict[Any, NDArray[Any]] = {}
    for candidate, own in zip(found, values, strict=True):
        merged = candidate.config.ratio
        scenes = own.mean(1)
        told = ""
        if merged in first:
            value, low, high = ratio(scenes, first[merged])
            told = f"{value:.2f} [{low:.2f}, {high:.2f}]"
        first.setdefault(merged, scenes)
        shown.add_row(
            f"{merged:.0%}",
            candidate.label,
            f"{scenes.mean():.5f}",
            told,
            *(f"{value:.5f}" for value in own.mean(0)),
        )
    return shown


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--painter", type=Path, default=painter.WEIGHTS, metavar="DIR")
    p.add_argument("--split", choices=["test", "validation"], default="validation")
    p.add_argument("--first", type=int, default=0, help="number of the first scene")
    p.add_argument("--scenes", type=int, default=24)
    p.add_argument("--time", type=int, nargs="+", default=TIMES, help="of 1000, from the noise")
    p.add_argument(
        "--guidance",
        type=float,
        default=painter.GUIDANCE,
        help="scale; 1 runs the prompted half alone, as distilled models do",
    )
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--ratio", type=float, nargs="+", default=[0.5])
    p.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    add_setting(p)
    p.add_argument("--threads", type=int, help="CPU threads; default torch's own")
    return p.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    # the painter's UNet runs here without its pipeline, which would tell
    shared = {"guidance": args.guidance != 1}
    found = candidates(args.method, args.ratio, args.setting, shared)
    console = Console()
    wide = Console(width=max(console.width, 60 + 12 * len(args.time) + 60))
    wide.print(table(found, errors(painter.load_painter(args.painter), found, args), args))


if __name__ == "__main__":
    try:
        main()
    except TurboError as error:
        raise SystemExit(f"error: {error}") from error
