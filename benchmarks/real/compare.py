"""A task of `turbovlm eval` with every method at every r, and turbo against each of them.

    python -m turbovlm_lab.export scenes --scenes 1000
    python benchmarks/real/compare.py vqa --model lab:vqa --data scenes/vqa_questions.json \\
        --answers scenes/vqa_annotations.json --r 8 14 20 --out runs

The last column is by how much turbo exceeds the method: the mean over examples, with its
95 % bootstrap interval. Every setting keeps its predictions in a folder of --out: a run that
was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import turbovlm
from turbovlm_workbench.run.processes import Processes
from turbovlm_workbench.run.result import difference
from turbovlm_workbench.run.runner import SCORES, RunPlan, run_task
from turbovlm_workbench.tasks.registry import build_task, scored_tasks
from turbovlm_workbench.tasks.request import Request

METHODS = ("turbo", "redundancy", "semantics")


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("task", choices=scored_tasks())
    p.add_argument("--model", required=True)
    p.add_argument("--weights", type=Path, metavar="FILE")
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--images", type=Path, metavar="DIR")
    p.add_argument("--answers", type=Path, metavar="FILE")
    p.add_argument("--beams", type=int, default=1)
    p.add_argument("--top", type=int, default=128)
    p.add_argument("--limit", type=int)
    p.add_argument("--r", type=int, nargs="+", required=True)
    p.add_argument("--method", nargs="+", default=METHODS)
    p.add_argument("--batch", type=int, default=50)
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    request = Request(
        args.model, args.data, args.images, args.answers, weights=args.weights, beams=args.beams,
        top=args.top, limit=args.limit,
    )  # fmt: skip
    task = build_task(args.task, request)
    merges = [turbovlm.Merge.from_dict({"r": r, "method": m}) for r in args.r for m in args.method]
    rows: list[dict[str, Any]] = []
    processes = Processes(0, 1, torch.device("cpu"))
    with Progress(transient=True) as bar:
        shown = bar.add_task("unmerged")
        for merge in (None, *merges):
            name = "unmerged" if merge is None else f"{merge.method}-r{merge.r}"
            folder = args.out / args.task / name
            asked = {"beams": args.beams, "top": args.top, "dtype": "fp32"}
            plan = RunPlan(folder, processes, args.batch, torch.float32, 0, asked)
            done = run_task(
                task, () if merge is None else (merge,), plan,
                lambda stage, now, all_, name=name: bar.update(
                    shown, description=f"{name} {stage}", completed=now, total=all_
                ),
            )  # fmt: skip
            assert done is not None
            row = {"setting": name, **done["metrics"]}
            turbo = args.out / args.task / f"turbo-r{merge.r}" / SCORES if merge else None
            if turbo and merge and merge.method != "turbo" and turbo.exists():
                row["turbo_over_it"] = difference(turbo, folder / SCORES)
            rows.append(row)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    first, *others = rows
    measures = [m for m in task.measures if m.key in first]
    assert any(row[m.key] != first[m.key] for row in others for m in measures)
    Console(width=180).print(table(measures, rows))


def table(measures: Any, rows: list[dict[str, Any]]) -> Table:
    shown = Table("setting", *(m.title for m in measures), "turbo over it [95 %]", box=None)
    for row in rows:
        gaps = row.get("turbo_over_it", {})
        over = [
            f"{m.title} {g[0] * 100:+.1f} [{g[1] * 100:+.1f}, {g[2] * 100:+.1f}]"
            for m in measures
            if (g := gaps.get(m.key))
        ]
        values = [m.text(row[m.key]) for m in measures]
        shown.add_row(row["setting"], *values, "; ".join(over[:2]))
    return shown


if __name__ == "__main__":
    main()
