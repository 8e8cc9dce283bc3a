"""``turbovlm run``: embed, caption or answer over millions of pictures, on Ray Data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from turbovlm_workbench.cli.arguments import MODEL_HELP, Batch, Beams, Device, Dtype, Weights
from turbovlm_workbench.cli.setting import (
    Alpha,
    Config,
    Keep,
    Method,
    Removed,
    Speedup,
    given_settings,
)


def run_job_command(
    task: Annotated[str, typer.Argument(help="embed, caption or answer.", metavar="TASK")],
    model: Annotated[
        str, typer.Argument(help=MODEL_HELP + " lab:NAME for a built-in one.", metavar="MODEL")
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="A folder of images, a Parquet file that holds them, or a folder of those.",
            metavar="PATH",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder of the results; a killed run goes on there.", metavar="DIR"),
    ],
    question: Annotated[
        str | None, typer.Option(help="What answer asks of every picture.", metavar="TEXT")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Column of the pictures in Parquet (default: image).", metavar="NAME"),
    ] = None,
    weights: Weights = None,
    r: Removed = None,
    method: Method = None,
    alpha: Alpha = None,
    speedup: Speedup = None,
    keep: Keep = None,
    config: Config = None,
    beams: Beams = None,
    batch: Batch = 32,
    workers: Annotated[
        int, typer.Option(help="Processes that hold the model each; several share a card.")
    ] = 1,
    part: Annotated[
        int, typer.Option(help="Pictures of a part, which is done again where it was cut short.")
    ] = 1000,
    address: Annotated[
        str | None,
        typer.Option(help="Of a Ray cluster (default: Ray is started here).", metavar="HOST:PORT"),
    ] = None,
    device: Device = None,
    dtype: Dtype = "fp32",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Embed, caption or answer over a folder or Parquet of millions of pictures.

    Examples:

      turbovlm run embed openai/clip-vit-base-patch32 --data photos --out embeddings --r 16

      turbovlm run caption lab:captioner --data shards --out captions --workers 2

      turbovlm run answer lab:vlm --data photos --question "what colour is it?" --out answers
    """
    from turbovlm.errors import require

    for package in ("ray", "pyarrow"):
        require(package, "scale")
    from turbovlm_workbench.cli.output import print_json, print_parts, progress_bar
    from turbovlm_workbench.scale.job import Job, run_job
    from turbovlm_workbench.scale.pipeline import Pool
    from turbovlm_workbench.scale.source import open_source
    from turbovlm_workbench.scale.work import Asked

    given = {"r": r, "speedup": speedup, "method": method, "alpha": alpha}
    applied = given_settings(given, keep, config)
    asked = Asked(task, model, None if weights is None else str(weights), beams, question)
    pool = Pool(workers, batch, address)
    job = Job(asked, applied, open_source(data, column, part), out.absolute(), device, dtype)
    with progress_bar() as progress:
        done = run_job(job, pool, progress)
    if json:
        print_json(done)
        return
    setting = " and ".join(map(repr, applied)) or "unmerged"
    good = done["pictures"] - done["bad"]
    lines = [f"{task} with {model}, {setting}: {good} pictures in {out / 'parts'}"]
    if done["bad"]:
        lines.append(f"{done['bad']} more could not be read: {out / 'bad'}")
    if "seconds" in done:
        lines.append(
            f"{done['pictures_now']} now, in {done['seconds']:.1f} s with the start of the workers"
        )
    print_parts("\n".join(lines))
