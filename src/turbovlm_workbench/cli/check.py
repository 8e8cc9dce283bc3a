"""``turbovlm check``: would it work on this model, and what would be merged?"""

from __future__ import annotations

from typing import Annotated

import typer

from turbovlm_workbench.cli.arguments import MODEL_HELP, whole_numbers


def check_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")],
    r: Annotated[
        str, typer.Option("--r", help="Tokens removed in every block.", metavar="INT")
    ] = "8",
    size: Annotated[
        int | None, typer.Option(help="Side of the image (default: the model's).", metavar="PX")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> int:
    """Say which encoders of a model are known, run the self-check, and show what would be merged.

    No weights are loaded. Where nothing fits it says why, or drafts the row that would. The exit
    code is 0 if the model is supported and 1 if it is not. Example:

      turbovlm check timm:eva02_base_patch14_224 --r 16
    """
    from turbovlm.config import Merge
    from turbovlm.errors import ConfigError
    from turbovlm_workbench.cli.output import print_json, print_parts, progress_bar
    from turbovlm_workbench.compare.check import check_model
    from turbovlm_workbench.load.skeleton import outline
    from turbovlm_workbench.report.check import check_lines

    amounts = whole_numbers(r, "--r")
    if len(amounts) > 1:
        raise ConfigError(f"--r takes one value here, got {r}: bench and flops compare several")
    config = Merge(r=amounts[0])
    with progress_bar() as progress:
        progress(f"building {model}", 0, 2)
        on_meta = outline(model, size=size)
        progress("checking", 1, 2)
        found = check_model(on_meta, config)
    if json:
        print_json(found.to_dict())
    else:
        print_parts(check_lines(found))
    return 0 if found.fits else 1
