"""Achieved speed-up over the limit: what merging costs beyond what it saves.

    python benchmarks/limit.py --model vit_base_patch16_224 --r 8 13 16 --batch 1 8
    python benchmarks/limit.py --preset issue --json limit.json

The limit is the same model with tokens simply sliced off at the same places, with its best
attention kernel and no merging. Off, limit and ours run interleaved on one model in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sides import DTYPES, EVA_G, Bench, Setting, random_model

from turbovlm.measure import (
    Rounds,
    Timing,
    compare,
    environment,
    flops,
    peak_memory,
)

HUGE = "THP_MEM_ALLOC_ENABLE"
BASE, LARGE = "vit_base_patch16_224", "vit_large_patch16_384"
# achieved over limit that must be reached, by model, from this batch on
TARGETS = {BASE: (8, 0.95), LARGE: (8, 0.97)}


# 577 tokens through 24 blocks: 23 is the most that a constant r allows
PRESETS = {
    "issue": [
        *(Setting(BASE, d, b, r) for d in ("fp32", "bf16") for b in (1, 8) for r in (8, 13, 16)),
        Setting(LARGE, "fp32", 8, 23),
    ],
    # the encoders of the paper's tables: BLIP (r 30 and 45), a large one, and BLIP-2's blocks, with
    # the r of the paper and with one that takes as many tokens in four blocks as 16 does in 39
    "paper": [
        *(Setting("vit_base_patch16_384", "fp32", b, r) for b in (1, 4) for r in (30, 45)),
        Setting(LARGE, "fp32", 1, 23),
        *(Setting(EVA_G, "fp32", 1, r) for r in (16, 156)),
    ],
}


def measure(bench: Bench, args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """Pilot to choose each side's best form, then the rounds that count."""
    task = progress.add_task(str(bench.setting), total=None)

    def show(done: int, rounds: int, name: str) -> None:
        label = f"{bench.setting}: {name.split('/')[0]}"
        progress.update(task, completed=done, total=rounds, description=label)

    rounds = Rounds(args.pilot, device=args.device, clock=args.clock, warmup=args.warmup)
    candidates = bench.forms()
    pilot: dict[str, Timing] = {}
    chosen: dict[str, str] = {}
    for side in ("off", "limit", "ours"):
        forms = {n: f.variant for n, f in candidates.items() if n.startswith(f"{side}/")}
        if len(forms) > 1:
            pilot |= compare(forms, rounds, show)
        chosen[side] = min(forms, key=lambda n: pilot[n].median_s if n in pilot else 0.0)
    sides = {side: candidates[name] for side, name in chosen.items()}
    variants = {side: form.variant for side, form in sides.items()}
    kernels = bench.check(sides)
    rounds = replace(
        rounds,
        number=args.rounds,
        min_seconds=args.min_seconds,
        max_seconds=args.max_seconds,
        settle=args.settle,
    )
    times = compare(variants, rounds, show)
    peaks = {s: peak_memory(v, device=args.device) for s, v in variants.items()}
    macs = {}
    for side, form in sides.items():
        with form.variant.enter():
            macs[side] = flops(form.model, bench.x).macs
    progress.remove_task(task)
    return {
        **asdict(bench.setting),
        "tokens": [bench.start, bench.lengths[-1]],
        "form": {side: name.split("/", 1)[1] for side, name in chosen.items()},
        "kernels": kernels,
        "gmacs": {side: count / 1e9 for side, count in macs.items()},
        "pilot_ms": {name: t.median_s * 1e3 for name, t in pilot.items()},
        "ms": {side: t.median_s * 1e3 for side, t in times.items()},
        "iqr_ms": {side: t.iqr * 1e3 for side, t in times.items()},
        "rounds": len(times["off"].seconds),
        "calls_per_round": {side: t.calls for side, t in times.items()},
        "page_faults": {side: t.median_page_faults for side, t in times.items()},
        "peak_bytes": peaks,
        "speedup": {s: asdict(times[s].speedup_over(times["off"])) for s in ("limit", "ours")},
        "achieved_over_limit": asdict(times["ours"].speedup_over(times["limit"])),
        "target": target(bench.setting),
        "seconds": {side: t.seconds for side, t in times.items()},
    }


def target(setting: Setting) -> float | None:
    batch, value = TARGETS.get(setting.model, (1, None))
    return value if setting.batch >= batch else None


def table(results: list[dict]) -> Table:
    heads = (
        "setting",
        "tokens",
        "ms off",
        "limit",
        "ours",
        "speed-up limit",
        "ours",
        "over limit [95 %]",
        "target",
        "peak MiB off",
        "limit",
        "ours",
    )
    shown = Table(title="achieved speed-up over the limit", title_style="bold")
    for head in heads:
        shown.add_column(head, justify="left" if head == "setting" else "right", no_wrap=True)
    for row in results:
        ms, mib = row["ms"], {s: b / 2**20 for s, b in row["peak_bytes"].items()}
        over, aim = row["achieved_over_limit"], row["target"]
        met = "" if aim is None else f"{aim} {'met' if over['value'] >= aim else 'MISSED'}"
        shown.add_row(
            f"{row['model']} {row['dtype']} b{row['batch']} r{row['r']}",
            "{} to {}".format(*row["tokens"]),
            *(f"{ms[s]:.1f}" for s in ("off", "limit", "ours")),
            *(f"{row['speedup'][s]['value']:.3f}" for s in ("limit", "ours")),
            f"{over['value']:.3f} [{over['low']:.3f}, {over['high']:.3f}]",
            met,
            *(f"{mib[s]:.1f}" for s in ("off", "limit", "ours")),
        )
    return shown


def notes(row: dict) -> str:
    faults = ", ".join(f"{s} {n:.0f}" for s, n in row["page_faults"].items())
    sides = "; ".join(f"{s}: {row['form'][s]} ({row['kernels'][s]})" for s in row["form"])
    name = f"{row['model']} {row['dtype']} b{row['batch']} r{row['r']}"
    return f"{name}: {row['rounds']} rounds; {sides}; page faults per call: {faults}"


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--preset", choices=PRESETS, help="issue: the settings with a target")
    p.add_argument("--model", nargs="+", default=[BASE], help="timm VisionTransformers")
    p.add_argument("--r", nargs="+", type=int, default=[8, 13, 16])
    p.add_argument("--batch", nargs="+", type=int, default=[8])
    p.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32"])
    p.add_argument("--method", default="turbo", help="whose score chooses the tokens")
    p.add_argument("--device", default="cpu")
    p.add_argument("--compile", action="store_true", help="torch.compile on all three sides")
    p.add_argument(
        "--attention",
        nargs="+",
        choices=["fused", "eager"],
        help="kernels to choose from; default fused, and both in bf16 on a CPU",
    )
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--pilot", type=int, default=3, help="rounds that choose each side's best form")
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--settle", type=int, default=0, help="untimed calls before every slot")
    p.add_argument("--min-seconds", type=float, default=0.0, help="per setting, at least")
    p.add_argument("--max-seconds", type=float, default=float("inf"), help="per setting, at most")
    p.add_argument("--threads", type=int, help="CPU threads; default torch's own")
    p.add_argument(
        "--allocator",
        choices=["default", "huge"],
        default="default",
        help="huge: torch takes large tensors in huge pages (Linux): hardly any page faults",
    )
    p.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, steady on a busy machine; only with --threads 1",
    )
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


def main() -> None:
    args, console = parse(), Console()
    if args.clock == "cpu" and args.threads != 1:
        raise SystemExit("--clock cpu counts threads that wait for each other: add --threads 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.allocator == "huge" and os.environ.get(HUGE) != "1":
        # torch reads it once, at its first allocation: start again with it set
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, HUGE: "1"})
    settings = (
        PRESETS[args.preset]
        if args.preset
        else [
            Setting(m, d, b, r)
            for m in args.model
            for d in args.dtype
            for b in args.batch
            for r in args.r
        ]
    )
    facts = {
        **environment(args.device),
        "allocator_setting": args.allocator,
        "compiled": args.compile,
        "clock": args.clock,
    }
    results: list[dict] = []
    model, built = None, ("", "")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        overall = progress.add_task("settings", total=len(settings))
        for setting in settings:
            if model is None or built != (setting.model, setting.dtype):
                model = random_model(setting.model, DTYPES[setting.dtype], args.device)
                built = (setting.model, setting.dtype)
            torch.compiler.reset()
            bench = Bench(
                model,
                setting,
                method=args.method,
                device=args.device,
                attention=args.attention,
                compiled=args.compile,
            )
            results.append(measure(bench, args, progress))
            progress.console.print(notes(results[-1]), highlight=False)
            if args.json:  # after every setting: a long run that is stopped keeps what it has
                text = json.dumps({"environment": facts, "results": results}, indent=1)
                args.json.write_text(text + "\n", encoding="utf-8")
            progress.advance(overall)
    wide = Console(width=max(console.width, 170))
    wide.print(table(results))
    wide.print(", ".join(f"{k} {v}" for k, v in facts.items()), highlight=False)


if __name__ == "__main__":
    main()
