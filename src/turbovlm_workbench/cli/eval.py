"""``turbovlm eval``: quality on labelled data, with predictions on disk and runs that resume."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from turbovlm_workbench.cli.arguments import MODEL_HELP, Beams, Device, Dtype, Weights
from turbovlm_workbench.cli.setting import (
    Alpha,
    Config,
    Keep,
    Method,
    Removed,
    Speedup,
    given_settings,
)


def eval_command(
    task: Annotated[
        str,
        typer.Argument(
            help="classification, retrieval, captioning, vqa, nlvr2 or agreement; generation has "
            "options of its own: turbovlm eval generation --help.",
            metavar="TASK",
        ),
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP + " lab:NAME for a built-in one.")],
    data: Annotated[
        Path,
        typer.Option(help="The examples, in one of the task's usual layouts.", metavar="PATH"),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for predictions, scores and result; a killed run goes on there.",
            metavar="DIR",
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images (default: beside the data).", metavar="DIR"),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Annotations of VQA questions, where they are apart.", metavar="FILE"),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Karpathy file.")] = "test",
    weights: Weights = None,
    r: Removed = None,
    method: Method = None,
    alpha: Alpha = None,
    speedup: Speedup = None,
    keep: Keep = None,
    config: Config = None,
    beams: Beams = None,
    top: Annotated[int, typer.Option(help="Candidates that a matching head ranks anew.")] = 128,
    limit: Annotated[int | None, typer.Option(help="Only the first so many examples.")] = None,
    batch: Annotated[int, typer.Option(help="Examples per call.")] = 32,
    device: Device = None,
    dtype: Dtype = "fp32",
    workers: Annotated[int, typer.Option(help="Threads that load images beside the model.")] = 0,
    against: Annotated[
        Path | None,
        typer.Option(help="--out of a run on the same data: show the difference.", metavar="DIR"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score a model, merged or not, on labelled data.

    Examples:

      turbovlm eval captioning --model Salesforce/blip-image-captioning-base
      --data dataset_coco.json --images coco --r 16 --out runs/r16

      turbovlm eval vqa --model llava-hf/llava-1.5-7b-hf --data questions.jsonl --keep 0.25
      --out runs/quarter

      accelerate launch -m turbovlm eval vqa --model ... --data ... --out runs/vqa
    """
    from turbovlm_workbench.cli.output import print_json, print_parts, progress_bar
    from turbovlm_workbench.cli.terminal import command_line
    from turbovlm_workbench.load.device import pick_device, pick_dtype
    from turbovlm_workbench.report.evaluation import broken, evaluation_table, heading
    from turbovlm_workbench.run.processes import join_processes
    from turbovlm_workbench.run.result import SCORES, difference, read_scores
    from turbovlm_workbench.run.runner import RunPlan, run_task
    from turbovlm_workbench.tasks.registry import build_task
    from turbovlm_workbench.tasks.request import Request

    given = {"r": r, "speedup": speedup, "method": method, "alpha": alpha}
    applied = given_settings(given, keep, config)
    request = Request(model, data, images, answers, split, weights, beams, top, limit)
    processes = join_processes(pick_device(device))
    if against is not None:
        read_scores(against / SCORES)  # whether it is there at all, before the model is loaded
    asked = {"beams": beams, "top": top, "dtype": dtype}
    number_format = pick_dtype(dtype, processes.device)
    plan = RunPlan(out, processes, batch, number_format, workers, asked, against, command_line())
    with progress_bar() if processes.leads else nullcontext(_silent) as progress:
        todo = build_task(task, request)
        done = run_task(todo, applied, plan, progress)
    if done is None:
        return
    gaps = None if against is None else difference(out / SCORES, against / SCORES)
    if json:
        print_json(done if gaps is None else {**done, "difference": gaps})
        return
    shown = evaluation_table(todo.measures, done, gaps)
    print_parts(heading(done), shown, *broken(done), f"predictions: {out}")


def _silent(stage: str, done: int, total: int) -> None:
    pass
