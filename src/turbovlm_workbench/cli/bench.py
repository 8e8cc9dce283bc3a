"""``turbovlm bench``: how much faster, at what cost, with which setting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from turbovlm_workbench.cli.arguments import (
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
    read_amounts,
    read_keeps,
)


def bench_command(
    model: Annotated[
        str,
        typer.Argument(
            help="timm:NAME, torchvision:NAME, open_clip:NAME, a local folder, or a hub id of "
            "transformers.",
            metavar="MODEL",
        ),
    ],
    images: Annotated[
        Path, typer.Option(help="Folder of images, searched with its subfolders.", metavar="DIR")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="Table with the columns file and label (0, 1, ...).", metavar="CSV"),
    ] = None,
    r: Amounts = None,
    speedup: Speedups = None,
    keep: Keeps = None,
    method: Annotated[
        str,
        typer.Option(help="turbo, redundancy, semantics, random.", metavar="NAME..."),
    ] = "turbo",
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the semantic value in turbo.")
    ] = None,
    collapse: Annotated[
        bool,
        typer.Option(
            "--collapse",
            help="After the last attention only cls and one token go on: exact where cls alone is "
            "read.",
        ),
    ] = False,
    weights: Weights = None,
    beams: Beams = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="Fuse BLIP's attention too, as a row of its own.")
    ] = False,
    batch: Batch = 32,
    device: Device = None,
    dtype: Dtype = "fp32",
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile both sides of every ratio.")
    ] = False,
    graph: Annotated[
        bool,
        typer.Option("--graph", help="Capture both sides of every ratio as CUDA graphs."),
    ] = False,
    rounds: Annotated[int, typer.Option(help="Interleaved timing rounds.")] = 10,
    json: JsonFile = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with plot and merge maps.", metavar="FILE")
    ] = None,
) -> None:
    """Measure speed and quality of every setting against the unmerged model.

    On a GPU the limit stands beside each speed-up, and eager mode beside --compile and --graph.

    Examples:

      turbovlm bench timm:vit_base_patch16_224 --images photos --speedup 1.2 1.4 1.8

      turbovlm bench timm:vit_base_patch16_224 --images photos --r 8 12 16

      turbovlm bench timm:vit_large_patch16_384 --images photos --speedup 1.4 --batch 8 --graph

      turbovlm bench llava-hf/llava-1.5-7b-hf --images photos --keep 0.5 0.25
    """
    from turbovlm.errors import ConfigError, require
    from turbovlm_workbench.cli.output import (
        check_outputs,
        deliver,
        print_parts,
        progress_bar,
        show,
        write_file,
        write_json,
    )
    from turbovlm_workbench.cli.terminal import command_line, with_command
    from turbovlm_workbench.compare.bench import run_bench
    from turbovlm_workbench.compare.plan import BenchPlan
    from turbovlm_workbench.compare.rows import Mode
    from turbovlm_workbench.compare.samples import show_some
    from turbovlm_workbench.compare.variants import merge_settings
    from turbovlm_workbench.data.images import ImageFolder
    from turbovlm_workbench.load.device import pick_device, pick_dtype
    from turbovlm_workbench.settings import combined
    from turbovlm_workbench.tasks.registry import load_task

    # Whatever can be wrong is found here, before the model is loaded and the long run begins.
    rs, speedups = read_amounts(r, speedup, keep)
    merges = merge_settings(
        rs, names(method, "--method"), [alpha], speedups=speedups, collapse=collapse
    )
    variants = combined(merges, read_keeps(keep))
    place = pick_device(device)
    if compiled and graph:
        raise ConfigError("--compile and --graph are two ways to run it: give one of the two")
    mode: Mode = "compiled" if compiled else "graph" if graph else "eager"
    # on a GPU the launches of eager mode can cost more than all operations: show what they do
    plan = BenchPlan(
        batch, place, pick_dtype(dtype, place), mode, fused, rounds, beside=place.type == "cuda"
    )
    check_outputs({"--json": json, "--html": html})
    if html is not None:
        require("matplotlib", "report")
        require("jinja2", "report")
    folder = ImageFolder.open(images, labels)
    with progress_bar() as progress:
        task = load_task(model, weights, beams=beams).with_labels(folder.labels)
        report = run_bench(task, folder, variants, plan, progress)

    def page(path: Path) -> None:
        from turbovlm_workbench.report.page import bench_page

        shown = show_some(task, folder, report)
        title = f"turbovlm on {model}"
        write_file(path, bench_page(report, *shown, title=title, command=command_line()))
        print_parts(f"page: {path}")

    deliver(
        lambda: write_json(with_command(report.to_dict()), json),
        lambda: show(report),
        None if html is None else lambda: page(html),
    )
