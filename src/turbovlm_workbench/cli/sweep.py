"""``turbovlm sweep``: every combination of settings, and the front of speed and quality."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from turbovlm_workbench.cli.arguments import (
    MODEL_HELP,
    Amounts,
    Batch,
    Beams,
    Device,
    Dtype,
    JsonFile,
    Keeps,
    Speedups,
    Weights,
    names,
    numbers,
    read_amounts,
    read_keeps,
)


def sweep_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")],
    images: Annotated[
        Path, typer.Option(help="Folder of images, searched with its subfolders.", metavar="DIR")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="Table with the columns file and label (0, 1, ...).", metavar="CSV"),
    ] = None,
    method: Annotated[
        str, typer.Option(help="turbo, redundancy, semantics, random.", metavar="NAME...")
    ] = "turbo redundancy",
    r: Amounts = None,
    speedup: Speedups = None,
    keep: Keeps = None,
    alpha: Annotated[
        str | None,
        typer.Option(help="Weights of the semantic value in turbo.", metavar="NUMBER..."),
    ] = None,
    inflection: Annotated[
        str,
        typer.Option(
            help="Shapes of the schedule: -1 merges early, 0 evenly, 1 late.", metavar="NUMBER..."
        ),
    ] = "0",
    weights: Weights = None,
    beams: Beams = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="Fuse BLIP's attention too, as a row of its own.")
    ] = False,
    batch: Batch = 32,
    device: Device = None,
    dtype: Dtype = "fp32",
    rounds: Annotated[int, typer.Option(help="Interleaved timing rounds.")] = 10,
    json: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the front: a .svg or .png file.", metavar="FILE")
    ] = None,
) -> None:
    """Measure all combinations of settings and mark those that no other one beats.

    Examples:

      turbovlm sweep timm:vit_base_patch16_224 --images photos --r 8 12 16 --alpha 1 2 6

      turbovlm sweep timm:vit_base_patch16_224 --images photos --r 8 --speedup 1.2 1.4 1.8

      turbovlm sweep llava-hf/llava-1.5-7b-hf --images photos --keep 0.5 0.25 0.11
    """
    from turbovlm.errors import ConfigError, require
    from turbovlm_workbench.cli.output import (
        check_outputs,
        deliver,
        print_parts,
        progress_bar,
        write_file,
        write_json,
    )
    from turbovlm_workbench.cli.terminal import with_command
    from turbovlm_workbench.compare.bench import run_bench
    from turbovlm_workbench.compare.plan import BenchPlan
    from turbovlm_workbench.compare.sweep import Sweep
    from turbovlm_workbench.compare.variants import merge_settings
    from turbovlm_workbench.data.images import ImageFolder
    from turbovlm_workbench.load.device import pick_device, pick_dtype
    from turbovlm_workbench.report.sweep import KINDS, draw_sweep, sweep_lines, sweep_table
    from turbovlm_workbench.settings import combined
    from turbovlm_workbench.tasks.registry import load_task

    weighed = [None] if alpha is None else numbers(alpha, "--alpha")
    shapes = numbers(inflection, "--inflection")
    rs, speedups = read_amounts(r, speedup, keep)
    merges = merge_settings(rs, names(method, "--method"), weighed, shapes, speedups=speedups)
    variants = combined(merges, read_keeps(keep))
    place = pick_device(device)
    plan = BenchPlan(batch, place, pick_dtype(dtype, place), fused=fused, rounds=rounds)
    check_outputs({"--json": json, "--plot": plot})
    if plot is not None:
        if plot.suffix.lower() not in KINDS:
            raise ConfigError(f"--plot {plot} must end in {' or '.join(KINDS)}")
        require("matplotlib", "report")
    folder = ImageFolder.open(images, labels)
    with progress_bar() as progress:
        task = load_task(model, weights, beams=beams).with_labels(folder.labels)
        found = Sweep.of(run_bench(task, folder, variants, plan, progress))

    def draw(path: Path) -> None:
        write_file(path, draw_sweep(found, path.suffix.lower()))
        print_parts(f"plot: {path}")

    deliver(
        lambda: write_json(with_command(found.to_dict()), json),
        lambda: print_parts(sweep_table(found), "\n".join(sweep_lines(found)), found.report.advice),
        None if plot is None else lambda: draw(plot),
    )
