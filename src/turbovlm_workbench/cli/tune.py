"""``turbovlm tune``: the fastest setting within a promise about the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from turbovlm_workbench.cli.arguments import (
    MODEL_HELP,
    Beams,
    Device,
    Dtype,
    Keeps,
    Weights,
    read_keeps,
    read_share,
)

OUT = Path("turbo.json")


def tune_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")],
    images: Annotated[
        Path,
        typer.Option(
            help="Folder of images, at least 20, searched with its subfolders.", metavar="DIR"
        ),
    ],
    max_loss: Annotated[str, typer.Option(help="The promise: 1% or 0.01.", metavar="SHARE")] = "1%",
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Table with the columns file and label: the loss is one of accuracy.",
            metavar="CSV",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the setting is saved.", metavar="FILE")] = OUT,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    weights: Weights = None,
    beams: Beams = None,
    batch: Annotated[int, typer.Option(help="Images per call, also of those timed.")] = 8,
    device: Device = None,
    dtype: Dtype = "fp32",
    rounds: Annotated[int, typer.Option(help="Interleaved timing rounds of the result.")] = 20,
    keep: Keeps = None,
    seed: Annotated[int, typer.Option(help="Of the split into search and validation.")] = 0,
) -> int:
    """Find the fastest setting whose loss stays within a promise, and save it.

    A third of the images is searched with, the rest validates the result. Without labels the
    unmerged model is the reference. On a GPU the limit stands beside the result. The exit code is
    0 if a setting was saved, 1 if none is worth it. Examples:

      turbovlm tune timm:vit_base_patch16_224 --images photos --max-loss 1%

      turbovlm tune llava-hf/llava-1.5-7b-hf --images photos --max-loss 10% --keep 0.5 0.25 0.11
    """
    from turbovlm_workbench.cli.output import (
        check_writable,
        deliver,
        print_json,
        print_parts,
        progress_bar,
        write_json,
    )
    from turbovlm_workbench.cli.terminal import with_command
    from turbovlm_workbench.compare.plan import BenchPlan
    from turbovlm_workbench.data.images import ImageFolder
    from turbovlm_workbench.load.device import pick_device, pick_dtype
    from turbovlm_workbench.report.tune import tune_lines, tune_table
    from turbovlm_workbench.settings import to_plain
    from turbovlm_workbench.tasks.registry import load_task
    from turbovlm_workbench.tune import tune as tuning
    from turbovlm_workbench.tune.goal import Goal

    goal = Goal(read_share(max_loss, "--max-loss"), seed, tuple(read_keeps(keep)))
    place = pick_device(device)
    beside = place.type == "cuda"
    plan = BenchPlan(batch, place, pick_dtype(dtype, place), rounds=rounds, beside=beside)
    check_writable(out, "--out")
    folder = ImageFolder.open(images, labels)
    tuning.split_images(len(folder), seed)  # refuses too few before the model is loaded
    with progress_bar() as progress:
        task = load_task(model, weights, beams=beams).with_labels(folder.labels)
        found = tuning.tune(task, folder, goal, plan, progress=progress)

    def tell() -> None:
        if json:
            print_json(with_command(found.to_dict()))
        else:
            print_parts(tune_table(found), "\n".join(tune_lines(found, out)))

    chosen = found.chosen
    deliver(None if chosen is None else lambda: write_json(to_plain(chosen.settings), out), tell)
    return 0 if chosen is not None else 1
