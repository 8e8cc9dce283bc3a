"""``turbovlm ablate``: the paper's ablations on anybody's model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from turbovlm_workbench.cli.arguments import MODEL_HELP, Device, Dtype, JsonFile, Weights
from turbovlm_workbench.cli.setting import Limit


def ablate_command(
    model: Annotated[
        str, typer.Argument(help=MODEL_HELP + " lab:NAME for a built-in one.", metavar="MODEL")
    ],
    task: Annotated[str, typer.Option(help="As in turbovlm eval; agreement needs no labels.")],
    data: Annotated[
        Path, typer.Option(help="The examples, in one of the task's layouts.", metavar="PATH")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the predictions of every setting; a killed run goes on there.",
            metavar="DIR",
        ),
    ],
    study: Annotated[
        str | None,
        typer.Option(
            help="components, fusion, ratio, alpha, threshold, quarter, five-percent, metric, "
            "start, schedules (default: all).",
            metavar="NAME...",
        ),
    ] = None,
    r: Annotated[
        int | None,
        typer.Option(
            "--r",
            help="What stands for the paper's drop ratio of 30 (default: the same share of this "
            "model's tokens).",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images (default: beside the data).", metavar="DIR"),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Karpathy file.")] = "test",
    limit: Limit = None,
    weights: Weights = None,
    batch: Annotated[int, typer.Option(help="Examples per call.")] = 32,
    device: Device = None,
    dtype: Dtype = "fp32",
    json: JsonFile = None,
    plots: Annotated[
        Path | None,
        typer.Option(help="Draw every study into this folder, as NAME.svg.", metavar="DIR"),
    ] = None,
) -> None:
    """Run the paper's ablations, with the paper's rows beside where it has them.

    Every distinct setting is evaluated once. Examples:

      turbovlm ablate timm:vit_base_patch16_224 --task classification --data val.csv --out runs

      turbovlm ablate lab:captioner --task agreement --data photos --study alpha start --out runs
    """
    from functools import partial

    from turbovlm.errors import ConfigError, InputError, require
    from turbovlm_workbench.cli.arguments import names
    from turbovlm_workbench.cli.output import (
        check_writable,
        deliver,
        print_parts,
        progress_bar,
        write_file,
        write_json,
    )
    from turbovlm_workbench.cli.terminal import command_line
    from turbovlm_workbench.load.device import pick_device, pick_dtype
    from turbovlm_workbench.report import ablation as report
    from turbovlm_workbench.report.analysis import rows_table
    from turbovlm_workbench.report.figure import figure_file
    from turbovlm_workbench.run.processes import join_processes, launched
    from turbovlm_workbench.run.runner import RunPlan
    from turbovlm_workbench.studies.run import run_studies
    from turbovlm_workbench.studies.table import find_studies
    from turbovlm_workbench.tasks.registry import build_task
    from turbovlm_workbench.tasks.request import Request

    chosen = find_studies(None if study is None else names(study, "--study"))
    if r is not None and r < 1:
        raise ConfigError(f"--r must be at least 1, got {r}")
    if launched():
        raise ConfigError("ablate runs in one process: use turbovlm eval for several")
    check_writable(json, "--json")
    if plots is not None:
        require("matplotlib", "report")
        try:
            plots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot write --plots {plots} ({error.strerror}): choose another folder"
            ) from error
    request = Request(model, data, images=images, split=split, weights=weights, limit=limit)
    processes = join_processes(pick_device(device))
    number_format = pick_dtype(dtype, processes.device)
    asked = {"dtype": dtype}
    plan = RunPlan(out, processes, batch, number_format, 0, asked, command=command_line())
    with progress_bar() as progress:
        found = run_studies(build_task(task, request), chosen, plan, r, progress)

    def data_of() -> dict[str, Any]:
        return {"kind": "ablate", "command": command_line(), **found.to_dict()}

    def tell() -> None:
        for one in found.studies:
            table = rows_table(report.study_headers(found, one), report.study_rows(found, one))
            print_parts(report.study_title(one), table, report.study_verdict(found, one) + "\n")
        print_parts("\n".join(report.ablation_notes(found)), f"predictions: {out}")

    def draw(folder: Path) -> None:
        for one in found.studies:
            paint = partial(report.paint_study, found, one)
            write_file(
                folder / f"{one.name}.svg", figure_file(paint, report.study_panels(found), ".svg")
            )
        print_parts(f"plots: {folder}")

    deliver(
        lambda: write_json(data_of(), json), tell, None if plots is None else lambda: draw(plots)
    )
