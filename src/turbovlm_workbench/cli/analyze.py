"""``turbovlm analyze``: how redundant the tokens of every block are, and what merging loses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from turbovlm_workbench.cli.arguments import MODEL_HELP, Batch, Device, Dtype, JsonFile, Weights
from turbovlm_workbench.cli.setting import (
    Alpha,
    Config,
    Limit,
    Method,
    Removed,
    Speedup,
    check_limit,
    given_merge,
)


def analyze_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")],
    images: Annotated[
        Path, typer.Option(help="Folder of images, searched with its subfolders.", metavar="DIR")
    ],
    r: Removed = None,
    speedup: Speedup = None,
    method: Method = None,
    alpha: Alpha = None,
    config: Config = None,
    limit: Limit = None,
    weights: Weights = None,
    batch: Batch = 32,
    device: Device = None,
    dtype: Dtype = "fp32",
    json: JsonFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw them by block: a .svg or .png file.", metavar="FILE"),
    ] = None,
) -> None:
    """Look at every block of an encoder: how alike its tokens are, and where its guide looks.

    With --r or --speedup also what merging leaves and loses in each block. Of a vision-language
    model the visual tokens in every layer of its language model are looked at too. Examples:

      turbovlm analyze timm:vit_base_patch16_224 --images photos --plot blocks.svg

      turbovlm analyze timm:vit_base_patch16_224 --images photos --r 8 --json blocks.json
    """
    from functools import partial

    from turbovlm_workbench.analyze.encoder import analyze_encoder
    from turbovlm_workbench.analyze.language import analyze_language, has_visual_tokens
    from turbovlm_workbench.cli.output import (
        check_writable,
        deliver,
        print_parts,
        progress_bar,
        write_file,
        write_json,
    )
    from turbovlm_workbench.cli.terminal import command_line
    from turbovlm_workbench.compare.plan import BenchPlan
    from turbovlm_workbench.compare.titles import title_of
    from turbovlm_workbench.data.images import ImageFolder
    from turbovlm_workbench.load.device import pick_device, pick_dtype
    from turbovlm_workbench.report import analysis as report
    from turbovlm_workbench.report.figure import check_figure, figure_file
    from turbovlm_workbench.tasks.image import told_batches
    from turbovlm_workbench.tasks.registry import load_task

    merge = given_merge({"r": r, "speedup": speedup, "method": method, "alpha": alpha}, config)
    check_limit(limit)
    place = pick_device(device)
    plan = BenchPlan(batch, place, pick_dtype(dtype, place))
    check_writable(json, "--json")
    check_writable(plot, "--plot")
    check_figure(plot, "--plot")
    folder = ImageFolder.open(images)
    chosen = range(len(folder))[:limit]
    settings = {} if merge is None else {title_of((merge,)): merge}
    with progress_bar() as progress:
        task = load_task(model, weights)
        whole = task.model.to(device=plan.device, dtype=plan.dtype)
        pixels = partial(told_batches, task, folder, chosen, plan.batch)
        encoder = task.encoder(whole)
        told = partial(progress, "encoder")
        forward = partial(task.encode, whole)
        found = analyze_encoder(encoder, forward, pixels(told), settings, model)
        language = None
        if has_visual_tokens(whole):
            told = partial(progress, "language model")
            language = analyze_language(whole, partial(task.call, whole), pixels(told), model)

    def data() -> dict[str, Any]:
        inside = None if language is None else language.to_dict()
        named = {"kind": "analyze", "command": command_line()}
        return {**named, "encoder": found.to_dict(), "language": inside}

    def tell() -> None:
        rows = report.rows_table(report.analysis_headers(found), report.analysis_rows(found))
        parts = [rows, "\n".join(report.analysis_notes(found))]
        if language is not None:
            parts.append(report.rows_table(report.LANGUAGE_HEADERS, report.language_rows(language)))
            parts.append("\n".join(report.language_notes(language)))
        print_parts(*parts)

    def draw(path: Path) -> None:
        paint = partial(report.paint_analysis, found)
        write_file(path, figure_file(paint, report.analysis_panels(found), path.suffix))
        print_parts(f"plot: {path}")

    deliver(lambda: write_json(data(), json), tell, None if plot is None else lambda: draw(plot))
