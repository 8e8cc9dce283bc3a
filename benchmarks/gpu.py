"""Speed on one GPU: unmerged, the limit, and ours without and with the Triton kernels.

    python benchmarks/gpu.py --json gpu.json             # under five minutes on one card
    python benchmarks/gpu.py --models vit-l-384 --batch 8 64 --budget 120
    python benchmarks/gpu.py --smoke                     # a tiny model, once, on any machine

The limit is the same model with as many tokens sliced off at the same places, and no merging.
Every side runs in the same process and mode: eager, as a CUDA graph, and, for the cells that
``--compile`` names, compiled. It needs torch, timm and this repository's ``src`` on the path.

First the kernels are compared with torch on the card; a row that says FAILED there makes the exit
code 1. A cell that runs out of memory or fails is recorded with its error, and the next one
follows. Cells are taken in the order of batches 8, 64, 1, 256; those that no longer fit the
budget are recorded as skipped.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from gpu_attention import SHAPES, SMOKE, attention_row
from gpu_checks import all_checks, checked
from gpu_sides import SPEEDUPS, SUBJECTS, Sides
from gpu_timing import Run, launches, medians_ms, once_ms, peak_mib
from torch import Tensor

SCHEDULES = ("r", *(f"speedup={value}" for value in SPEEDUPS))
PARTS = ("checks", "attention", "cells")
BATCHES = (8, 64, 1, 256)
CALLS = 10
"""Calls of every side in one cell and mode, at least: warm-up, capture, rounds, memory."""
COMPILING = 90
"""Seconds that the four sides of one cell take to compile."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Benchmark:
    """The run: models that stay built, results so far, and the time that is left."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.end = time.perf_counter() + args.budget
        self.results: dict[str, list[dict]] = {"checks": [], "attention": [], "cells": []}
        self._built: dict[str, Sides] = {}

    def sides(self, model: str) -> Sides:
        if model not in self._built:
            self._built[model] = Sides(SUBJECTS[model], self.device, DTYPES[self.args.dtype])
        return self._built[model]

    def left(self) -> float:
        return self.end - time.perf_counter()

    def checks(self) -> None:
        sides = Sides(SUBJECTS[self.args.models[0]], self.device, torch.float32)
        rows: list[dict] = []
        whole = checked("checks", lambda: rows.extend(all_checks(sides, SCHEDULES[1])))
        if not whole["ok"]:
            rows.append(whole)
        self.results["checks"] = rows
        for row in rows:
            print("ok    " if row["ok"] else "FAILED", check_line(row))

    def attention(self) -> None:
        print("\nattention, ms        none     mask     ours  ours / none")
        for shape in SMOKE if self.args.smoke else SHAPES:
            row: dict = {"shape": list(shape)}
            try:
                row = attention_row(shape, self.device, DTYPES[self.args.dtype], 0.3)
                print(attention_line(row))
            except Exception as error:
                row["error"] = said(error)
                print(f"{shape}: {row['error']}")
            self.results["attention"].append(row)

    def cells(self) -> None:
        print("\n" + HEAD)
        for batch in self.args.batch:
            for model in self.args.models:
                try:
                    for row in self.cell(model, batch):
                        self.record(row)
                except Exception as error:
                    self.record({"model": model, "batch": batch, "error": said(error)})
                gc.collect()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def record(self, row: dict) -> None:
        self.results["cells"].append(row)
        print(cell_line(row), flush=True)

    def cell(self, model: str, batch: int) -> Iterator[dict]:
        """The rows of one model at one batch, one for every mode and schedule."""
        common = {"model": model, "batch": batch}
        sides = self.sides(model)
        x = sides.images(batch)
        off = sides.run("off", "r", "eager", x)
        off()
        single = once_ms(off, self.device) / 1e3
        modes = ["eager", *(["graph"] if self.device.type == "cuda" else [])]
        needs = single * CALLS * len(modes) * (1 + len(SCHEDULES) * (len(sides.names()) - 1))
        if needs > min(self.left(), self.args.longest):
            left = f"{self.left():.0f} s are left, {self.args.longest:.0f} s allowed"
            yield {**common, "skipped": f"skipped: needs about {needs:.0f} s; {left}"}
            return
        for mode in modes:
            yield from self.timed(sides, common, SCHEDULES, mode, x)
        if f"{model}:{batch}" not in self.args.compile:
            return
        if self.left() < COMPILING and not self.args.smoke:
            yield {**common, "skipped": f"skipped: compiling needs {COMPILING} s"}
        else:
            yield from self.timed(sides, common, SCHEDULES[1:2], "compile", x)

    def timed(
        self, sides: Sides, common: dict, schedules: tuple[str, ...], mode: str, x: Tensor
    ) -> Iterator[dict]:
        """Every side of one mode, interleaved; a side that fails is left out with its error."""
        runs: dict[str, Run] = {}
        errors: dict[str, str] = {}
        for schedule in schedules:
            for side in sides.names():
                name = named(side, schedule)
                if name in runs or name in errors:
                    continue
                try:
                    run = sides.run(side, schedule, mode, x)
                    run()
                    runs[name] = run
                except Exception as error:
                    errors[name] = said(error)
        found = medians_ms(runs, self.device, self.args.seconds, self.args.rounds)
        for schedule in schedules:
            names = {
                side: side if side == "off" else f"{side} {schedule}" for side in sides.names()
            }
            row = {**common, "mode": mode, "schedule": schedule}
            row["ms"] = {side: found[name] for side, name in names.items() if name in found}
            row["errors"] = {side: errors[name] for side, name in names.items() if name in errors}
            if mode == "eager":
                row["tokens"] = [*sides.lengths(schedule)]
                eager = {side: runs[name] for side, name in names.items() if name in runs}
                row["peak_mib"] = {s: peak_mib(run, self.device) for s, run in eager.items()}
                if common["batch"] == self.args.batch[0]:  # it takes long, and is the same for all
                    row["launches"] = {
                        s: sum(launches(run, self.device).values()) for s, run in eager.items()
                    }
            yield row


HEAD = (
    "model               batch mode    schedule      off ms   limit   torch kernels "
    "over limit  MiB off limit torch kernels  launches off torch kernels"
)


def check_line(row: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.items() if key != "ok")


def attention_line(row: dict) -> str:
    ms, shape = row["ms"], "x".join(map(str, row["shape"]))
    ours = ms.get("ours")
    tail = "       -" if ours is None else f"{ours:8.4f} {ours / ms['none']:8.2f}"
    return f"{shape:18s} {ms['none']:8.4f} {ms['mask']:8.4f} {tail}"


def cell_line(row: dict) -> str:
    start = f"{row['model']:19s} {row['batch']:5d}"
    if "ms" not in row:
        return f"{start} {row.get('skipped') or row['error']}"
    ms = row["ms"]
    off = ms.get("off")

    def gain(side: str) -> str:
        return f"{off / ms[side]:6.2f}x" if off and side in ms else "      -"

    ours = min((ms[s] for s in ("torch", "kernels") if s in ms), default=None)
    over = f"{ms['limit'] / ours:10.2f}" if ours and "limit" in ms else "         -"
    line = f"{start} {row['mode']:7s} {row['schedule']:12s} {off or 0:7.2f} "
    line += f"{gain('limit')} {gain('torch')} {gain('kernels')} {over}"
    peaks = [p for p in row.get("peak_mib", {}).values() if p is not None]
    line += "".join(f" {p:7.0f}" for p in peaks)
    line += "".join(f" {n:6d}" for s, n in row.get("launches", {}).items() if s != "limit" and n)
    return line + "".join(f"\n    {side}: {error}" for side, error in row["errors"].items())


def named(side: str, schedule: str) -> str:
    """Of a run: unmerged is the same under every schedule."""
    return side if side == "off" else f"{side} {schedule}"


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def facts(device: torch.device) -> dict[str, str]:
    """What the numbers depend on."""
    found = {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = "not installed"
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["runtime"] = str(torch.version.cuda or torch.version.hip)
    return found


def parse() -> argparse.Namespace:
    models = [name for name in SUBJECTS if name != "tiny"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--batch", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--budget", type=float, default=270, help="seconds for everything")
    parser.add_argument("--seconds", type=float, default=0.8, help="of rounds for a cell and mode")
    parser.add_argument("--longest", type=float, default=45, help="seconds of a cell, at most")
    parser.add_argument("--rounds", type=int, default=30, help="at most, for a cell and mode")
    parser.add_argument(
        "--compile",
        nargs="*",
        default=["vit-b-224:64"],
        metavar="MODEL:BATCH",
        help="cells that are compiled too, at speedup=1.4: most of a minute each",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.smoke:
        args.models, args.batch, args.rounds = ["tiny"], [2], 1
        args.compile, args.dtype = ["tiny:2"], "fp32"
    return args


def main() -> None:
    args = parse()
    torch._dynamo.config.recompile_limit = 64
    bench = Benchmark(args)
    known = facts(bench.device)
    print(", ".join(f"{k} {v}" for k, v in known.items()), "\n")
    try:
        for part in args.parts:
            getattr(bench, part)()
    finally:
        if args.json:  # what there is, whatever happened
            text = json.dumps({"facts": known, **bench.results}, indent=1)
            args.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(0 if all(row["ok"] for row in bench.results["checks"]) else 1)


if __name__ == "__main__":
    main()
