"""``turbovlm flops``: what a model costs, from shapes alone; and the paper's own figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from turbovlm.config import Merge
from turbovlm_workbench.cli.arguments import MODEL_HELP, Amounts, Speedups, names, read_amounts

METHOD = "turbo"


def flops_command(
    model: Annotated[
        str | None,
        typer.Argument(help=MODEL_HELP, metavar="MODEL"),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Count every row of the paper's FLOPs columns.")
    ] = False,
    size: Annotated[
        int | None, typer.Option(help="Side of the image (default: the model's).", metavar="PX")
    ] = None,
    r: Amounts = None,
    speedup: Speedups = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"turbo, redundancy, semantics, random (default: {METHOD}).", metavar="NAME..."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> int:
    """Count a model's operations with and without merging: no weights, no images.

    Of a hub id only the configuration is read; --r 0 counts the unmerged model alone. What
    --speedup chooses is that of a CPU: on a GPU fewer blocks merge. Examples:

      turbovlm flops timm:vit_large_patch16_384 --r 8 16 23

      turbovlm flops timm:vit_large_patch16_384 --speedup 1.2 1.4 1.8

    With --paper the exit code is 1 if a row is more than 0.1 % off the exact figure.

      turbovlm flops --paper
    """
    from turbovlm.errors import ConfigError

    if paper:
        if not all(value is None for value in (model, size, r, speedup, method)):
            raise ConfigError(
                "--paper counts the paper's own models and settings: leave MODEL, --size, --r, "
                "--speedup and --method out"
            )
        return _paper(json)
    if model is None:
        raise ConfigError("flops needs a MODEL, or --paper: turbovlm flops --help")
    from turbovlm_workbench.compare.variants import merge_settings

    rs, speedups = read_amounts(r, speedup)
    methods = names(METHOD if method is None else method, "--method")
    return _model(model, size, merge_settings(rs, methods, speedups=speedups), json)


def _model(model: str, size: int | None, merges: Sequence[Merge], as_json: bool) -> int:
    from turbovlm_workbench.cli.output import print_json, print_parts, progress_bar
    from turbovlm_workbench.compare.operations import count_model
    from turbovlm_workbench.report import operations as report

    with progress_bar() as progress:
        counted = count_model(model, merges, progress, size=size)
    if as_json:
        print_json(counted.to_dict())
    else:
        print_parts(
            counted.what,
            report.operations_table(counted),
            report.parts(counted),
            "\n".join(report.operations_notes(counted)),
        )
    return 0


def _paper(as_json: bool) -> int:
    from turbovlm_workbench.cli.output import print_json, print_parts, progress_bar
    from turbovlm_workbench.paper.count import TOLERANCE, count_all
    from turbovlm_workbench.report import paper as report

    with progress_bar() as progress:
        rows = count_all(progress)
    equal = all(row.equal for row in rows)
    if as_json:
        counted = [row.to_dict() for row in rows]
        print_json({"tolerance": TOLERANCE, "equal": equal, "rows": counted})
    else:
        print_parts(report.paper_table(rows), report.NOTES, report.paper_verdict(rows))
    return 0 if equal else 1
