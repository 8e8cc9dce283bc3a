"""One denoising step of a UNet: the speed-up that is reached, and what of the limit it is.

    python benchmarks/generation/speed.py --threads 1 --clock cpu --json speed.json
    python benchmarks/generation/speed.py --device cuda --dtype bf16 --pixels 512 1024 --compile
    python benchmarks/generation/speed.py --shape painter --pixels 64 --scope all

The UNet has Stable Diffusion 1.5's shape (``--shape``) and random weights. The limit is the same
model with as many tokens sliced off before each module and zeros put back after it: no matching, no
merge, no copy of a destination. Attention is fused on all sides. Unmerged, limit and candidates run
interleaved on the same weights.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from methods import METHODS, TOMESD, Candidate, add_setting, candidates
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from unet import SHAPES, Step, check, limit, merged, shares

from turbovlm.errors import TurboError
from turbovlm.measure import Rounds, Timing, compare, environment

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCOPES = ("self", "all")


@dataclass(frozen=True)
class Place:
    """What is timed together: pixels, modules and ratio."""

    pixels: int
    scope: str
    ratio: float

    def __str__(self) -> str:
        return f"{self.pixels} px, {self.scope}, {self.ratio:g}"

    def candidates(self, args: argparse.Namespace, tokens: int) -> list[Candidate]:
        """The methods, by name; ``self`` is tomesd's default, self-attention of the first level."""
        alone = {"cross_attention": 0, "feed_forward": 0, "min_tokens": tokens}
        shared = alone if self.scope == "self" else {}
        shared = {"guidance": True, **shared}  # `Step` is both halves
        return candidates(args.method, [self.ratio], args.setting, shared)


def measure(
    model: nn.Module, place: Place, args: argparse.Namespace, progress: Progress
) -> dict[str, Any]:
    """Check, let a pilot choose the limit's form, then the rounds that count."""
    step = Step.of(model, place.pixels // SHAPES[args.shape].scale, args.images)
    tried = {c.label: c for c in place.candidates(args, step.tokens)}
    config = next(iter(tried.values())).config
    twins = {label: merged(model, c, step.tokens) for label, c in tried.items()}
    limits = {form: limit(model, config, form == "copy") for form in ("view", "copy")}
    gmacs = check({"off": model, "limit": limits["view"], **twins}, step)
    task = progress.add_task(str(place), total=None)

    def show(done: int, rounds: int, name: str) -> None:
        progress.update(task, completed=done, total=rounds, description=f"{place}: {name}")

    def time(sides: dict[str, nn.Module], rounds: int) -> dict[str, Timing]:
        return compare(
            {name: partial(step.run, side) for name, side in sides.items()},
            Rounds(
                rounds,
                max_seconds=args.max_seconds,
                warmup=args.warmup,
                settle=args.settle,
                device=args.device,
                clock=args.clock,
            ),
            show,
        )

    parts = {}
    if not args.compile:
        clock = args.clock == "cpu"
        parts = {n: shares(c, twins[n], step, cpu_clock=clock, calls=2) for n, c in tried.items()}
    else:
        for name, side in {**limits, **twins, "off": model}.items():
            # tomesd draws from a generator, which breaks the graph
            whole = name not in tried or tried[name].method != TOMESD
            side.compile(fullgraph=whole, dynamic=False)
    pilot = time(limits, args.pilot)
    form = min(pilot, key=lambda name: pilot[name].median_s)
    times = time({"off": model, "limit": limits[form], **twins}, args.rounds)
    progress.remove_task(task)
    off, least = times["off"], times["limit"]
    return {
        **asdict(place),
        "rounds": len(off.seconds),
        "limit_form": form,
        "ms": {name: t.median_s * 1e3 for name, t in times.items()},
        "iqr_ms": {name: t.iqr * 1e3 for name, t in times.items()},
        "gmacs": gmacs,
        "speedup": {n: asdict(t.speedup_over(off)) for n, t in times.items() if n != "off"},
        "over_limit": {n: asdict(times[n].speedup_over(least)) for n in tried},
        "over_tomesd": {n: asdict(times[n].speedup_over(times[TOMESD])) for n in tried}
        if TOMESD in times
        else {},
        "share_of_time": parts,
        "seconds": {name: t.seconds for name, t in times.items()},
    }


def table(results: list[dict[str, Any]]) -> Table:
    shown = Table(title="one denoising step", title_style="bold")
    heads = ("setting", "side", "ms", "GMACs", "speed-up [95 %]", "over the limit [95 %]")
    for head in (*heads, "match", "merge", "restore"):
        left = head in ("setting", "side")
        shown.add_column(head, justify="left" if left else "right", no_wrap=True)
    for row in results:
        for side, ms in row["ms"].items():
            first = side == "off"
            label = f"{row['pixels']} px, {row['scope']}, {row['ratio']:g}" if first else ""
            parts = row["share_of_time"].get(side, {})
            shown.add_row(
                label,
                side,
                f"{ms:.1f}",
                f"{row['gmacs'][side]:.1f}",
                _ratio(row["speedup"].get(side)),
                _ratio(row["over_limit"].get(side)),
                *(f"{parts[p]:.1%}" if p in parts else "" for p in ("match", "merge", "restore")),
                end_section=side == list(row["ms"])[-1],
            )
    return shown


def _ratio(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--shape",
        choices=SHAPES,
        default="sd15",
        help="painter: the built-in one's, drawn at --pixels 64; tiny: for the test",
    )
    p.add_argument("--pixels", type=int, nargs="+", default=[256, 512])
    p.add_argument("--images", type=int, default=1, help="guidance doubles the batch")
    p.add_argument("--ratio", type=float, nargs="+", default=[0.5, 0.3])
    p.add_argument(
        "--scope",
        nargs="+",
        choices=SCOPES,
        default=SCOPES,
        help="self: self-attention at the first level, as tomesd's default; all: all modules and "
        "levels",
    )
    p.add_argument("--method", nargs="+", choices=METHODS, default=["turbo", "redundancy", TOMESD])
    add_setting(p)
    p.add_argument("--dtype", choices=DTYPES, default="fp32")
    p.add_argument("--device", default="cpu")
    p.add_argument("--compile", action="store_true", help="torch.compile on all sides")
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--pilot", type=int, default=3, help="rounds that choose the limit's form")
    p.add_argument("--warmup", type=int, default=1)
    p.add_argument("--settle", type=int, default=0, help="untimed calls before every slot")
    p.add_argument("--max-seconds", type=float, default=float("inf"), help="per setting, at most")
    p.add_argument("--threads", type=int, help="CPU threads; default torch's own")
    p.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, steady on a busy machine; only with --threads 1",
    )
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args, console = parse(arguments), Console()
    if args.clock == "cpu" and args.threads != 1:
        raise SystemExit("--clock cpu counts threads that wait for each other: add --threads 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch._dynamo.config.recompile_limit = 64  # all sides run the same lines of code
    facts = {**environment(args.device), "compiled": args.compile, "clock": args.clock}
    facts |= {"dtype": args.dtype, "images": args.images, "shape": args.shape}
    torch.manual_seed(0)
    with torch.device(args.device):
        # not the model's own `to`, which talks
        model = nn.Module.to(SHAPES[args.shape].build(), DTYPES[args.dtype]).eval()
    results: list[dict[str, Any]] = []
    places = [Place(*p) for p in product(args.pixels, args.scope, args.ratio)]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        overall = progress.add_task("settings", total=len(places))
        for place in places:
            results.append(measure(model, place, args, progress))
            if args.json:  # after every setting: a long run that is stopped keeps what it has
                text = json.dumps({"environment": facts, "results": results}, indent=1)
                args.json.write_text(text + "\n", encoding="utf-8")
            progress.advance(overall)
    wide = Console(width=max(console.width, 170))
    wide.print(table(results))
    wide.print(", ".join(f"{k} {v}" for k, v in facts.items()), highlight=False)


if __name__ == "__main__":
    try:
        main()
    except TurboError as error:
        raise SystemExit(f"error: {error}") from error
