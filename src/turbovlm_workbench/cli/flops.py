"""``turbovlm flops``: what a model costs, from shapes alone; and the paper's own figures."""

from __future__ import annotations

from typing import Annotated

import typer

from turbovlm_workbench.cli.arguments import MODEL_HELP, names, whole_numbers

R, METHOD = "4 8 12 16", "turbo"


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
    r: Annotated[
        str | None,
        typer.Option(
            "--r",
            help=f"Tokens removed in every block (default: {R}); 0: the unmerged model alone.",
            metavar="INT...",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"turbo, redundancy, semantics, random (default: {METHOD}).", metavar="NAME..."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> int:
    """Count a model's operations with and without merging: no weights, no images.

    Of a hub id only the configuration is read. Example:

      turbovlm flops timm:vit_large_patch16_384 --r 8 16 23

    With --paper the exit code is 1 if a row is more than 0.1 % off the exact figure.

      turbovlm flops --paper
    """
    from turbovlm.errors import ConfigError

    if paper:
        if not all(value is None for value in (model, size, r, method)):
            raise ConfigError(
                "--paper counts the paper's own models and settings: leave MODEL, --size, --r and "
                "--method out"
            )
        return _paper(json)
    if model is None:
        raise ConfigError("flops needs a MODEL, or --paper: turbovlm flops --help")
    return _model(model, size, R if r is None else r, METHOD if method is None else method, json)


def _model(model: str, size: int | None, r: str, method: str, as_json: bool) -> int:
    from turbovlm_workbench.cli.output import print_json, print_parts, progress_bar
    from turbovlm_workbench.compare.operations import count_model
    from turbovlm_workbench.compare.variants import merge_settings
    from turbovlm_workbench.report import operations as report

    merges = merge_settings(whole_numbers(r, "--r"), names(method, "--method"))
    with progress_bar() as progress:
        counted = count_model(model, merges, progress, size=size)
    if as_json:
        print_json(counted.to_dict())
    else:
        print_parts(
            counted.what, report.operations_table(counted), report.parts(counted), report.NOTE
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
