"""``turbovlm eval generation``: pictures of a list of prompts, and what they are worth."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from turbovlm.config import MergeRestore
from turbovlm.errors import ConfigError
from turbovlm_workbench.cli.arguments import Device, Dtype, numbers
from turbovlm_workbench.cli.generate import PIPELINE_HELP, Guidance, Negative, Size, Steps


def eval_generation_command(
    model: Annotated[str, typer.Option(help=PIPELINE_HELP)],
    out: Annotated[
        Path,
        typer.Option(help="Folder of the pictures; a killed run goes on there.", metavar="DIR"),
    ],
    prompts: Annotated[
        str,
        typer.Option(
            help="imagenet, a text file with one a line, or JSONL of prompt.", metavar="FILE"
        ),
    ] = "imagenet",
    count: Annotated[
        int | None,
        typer.Option(help="Pictures (default: one a prompt; of imagenet 2000, two a class)."),
    ] = None,
    ratio: Annotated[
        str | None,
        typer.Option(help="Share of the tokens to merge (default: none).", metavar="FLOAT"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="turbo, redundancy, semantics, random (default: turbo)."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A saved setting, instead of --ratio.", metavar="FILE")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images, or --out of another run: FID and difference to it.",
            metavar="DIR",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Encoder for FID, as bench takes it (default: the published Inception).",
            metavar="MODEL",
        ),
    ] = None,
    fid_weights: Annotated[
        Path | None,
        typer.Option(help="Local file of the Inception weights.", metavar="FILE"),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="Dual encoder for the CLIP-score, as eval retrieval takes it."),
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    negative: Negative = None,
    seed: Annotated[int, typer.Option(help="Of the first picture; the next has one more.")] = 0,
    batch: Annotated[int, typer.Option(help="Pictures per call.")] = 8,
    device: Device = None,
    dtype: Dtype = "fp32",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Draw a list of prompts, merged or not, and score the pictures.

    Pictures are kept: the same command with another --reference, --features or --clip only
    scores them. Examples:

      turbovlm eval generation --model ./stable-diffusion --out runs/plain --dtype fp16

      turbovlm eval generation --model ./stable-diffusion --out runs/r30 --dtype fp16 --ratio 0.3
      --reference runs/plain --fid-weights inception.pth --clip openai/clip-vit-base-patch16
    """
    from turbovlm_workbench.cli.output import print_json, print_parts, progress_bar
    from turbovlm_workbench.cli.terminal import command_line
    from turbovlm_workbench.generation.draw import Drawing, check_seed
    from turbovlm_workbench.generation.fid import load_fid
    from turbovlm_workbench.generation.pipeline import as_loaded, check_pipeline, load_pipeline
    from turbovlm_workbench.generation.prompts import read_prompts, repeat
    from turbovlm_workbench.load.by_task import load_matching
    from turbovlm_workbench.load.device import pick_device, pick_dtype
    from turbovlm_workbench.report.evaluation import evaluation_table, heading
    from turbovlm_workbench.run.processes import join_processes
    from turbovlm_workbench.run.runner import RunPlan, run_task
    from turbovlm_workbench.tasks.generation import (
        Generation,
        PictureScoring,
        Reference,
        numbered,
    )

    merge = _setting(ratio, method, config)
    check_seed(seed)
    drawing = Drawing(steps, guidance, size, negative).of(model)
    asked = repeat(read_prompts(prompts), count, prompts)
    if reference is None and (features is not None or fid_weights is not None):
        raise ConfigError("FID needs --reference: a folder of images, or another run")
    if features is not None and fid_weights is not None:
        raise ConfigError("--fid-weights are of the Inception network: leave --features out")
    compared = None if reference is None else Reference.open(reference)
    check_pipeline(model)
    processes = join_processes(pick_device(device))
    number_format = pick_dtype(dtype, processes.device)
    kept = {"steps": drawing.steps, "guidance": drawing.guidance, "size": size}
    kept |= {"negative": negative, "dtype": dtype}
    plan = RunPlan(out, processes, batch, number_format, 0, kept, command=command_line())
    with progress_bar() if processes.leads else nullcontext(_silent) as progress:
        # the small models first: what is wrong with them shows at once
        scores = processes.leads and compared is not None
        fid = load_fid(features, fid_weights, processes.device) if scores else None
        scorer = load_matching(clip) if clip is not None and processes.leads else None
        if scorer is not None:
            scorer.model.to(processes.device)
        pipe = load_pipeline(model, number_format, processes.device)
        scoring = PictureScoring(compared, fid, scorer, progress) if processes.leads else None
        loaded = as_loaded(pipe, model)
        todo = Generation(
            loaded,
            numbered(asked, seed),
            pipe=pipe,
            drawing=drawing,
            out=out,
            scoring=scoring,
        )
        done = run_task(todo, () if merge is None else (merge,), plan, progress)
    if done is None:
        return
    if json:
        print_json(done)
        return
    note = f"features: {done['features']}" if "features" in done else ""
    parts = [heading(done), evaluation_table(todo.measures, done), note, f"pictures: {out}"]
    print_parts(*(part for part in parts if part))


def _setting(ratio: str | None, method: str | None, config: Path | None) -> MergeRestore | None:
    """What to merge; None where neither --ratio nor --config asks for it."""
    if config is not None:
        if ratio is not None or method is not None:
            raise ConfigError("--config is a whole setting: leave --ratio and --method out")
        return MergeRestore.load(config)
    if ratio is None:
        if method is not None:
            raise ConfigError("--method without --ratio changes nothing: give --ratio too")
        return None
    values = numbers(ratio, "--ratio")
    if len(values) > 1:
        raise ConfigError("--ratio takes one value here, as a run is one setting: one --out each")
    named = {} if method is None else {"method": method}
    return MergeRestore.from_dict({"ratio": values[0], **named})


def _silent(stage: str, done: int, total: int) -> None:
    pass
