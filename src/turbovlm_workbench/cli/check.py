"""``turbovlm check``: would it work on this model, and what would be merged?"""

from __future__ import annotations

from typing import Annotated

import typer

from turbovlm_workbench.cli.arguments import MODEL_HELP, one_number, read_keep, whole_numbers


def check_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")],
    speedup: Annotated[
        str | None,
        typer.Option(
            help="How many times fewer operations the encoder's blocks shall need (default: 1.4).",
            metavar="NUMBER",
        ),
    ] = None,
    r: Annotated[
        str | None,
        typer.Option("--r", help="Instead, tokens removed in every block.", metavar="INT"),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            help="Share, or number, of a picture's tokens that a language model gets.",
            metavar="KEEP",
        ),
    ] = "0.25",
    size: Annotated[
        int | None, typer.Option(help="Side of the image (default: the model's).", metavar="PX")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> int:
    """Say which encoders of a model are known, run the self-check, and show what would be merged.

    Of a vision-language model it also counts what fewer visual tokens save: tower, prefill, a
    decoding step and the key-value cache. No weights are loaded. Where nothing fits it says why,
    or drafts the row that would. The exit code is 0 if the model is supported and 1 if it is not.
    Examples:

      turbovlm check timm:eva02_base_patch14_224 --speedup 1.4

      turbovlm check llava-hf/llava-1.5-7b-hf --keep 0.25
    """
    from turbovlm.config import Merge, VisualTokens
    from turbovlm.errors import ConfigError
    from turbovlm_workbench.cli.output import print_json, print_parts, progress_bar
    from turbovlm_workbench.cli.terminal import with_command
    from turbovlm_workbench.compare.check import RECOMMENDED, check_model
    from turbovlm_workbench.load.skeleton import outline
    from turbovlm_workbench.report.check import check_lines

    config = RECOMMENDED
    if speedup is not None and r is not None:
        raise ConfigError("--speedup and --r both say how much is merged: give one of the two")
    if speedup is not None:
        config = Merge(speedup=one_number(speedup, "--speedup"))
    elif r is not None:
        amounts = whole_numbers(r, "--r")
        if len(amounts) > 1:
            raise ConfigError(f"--r takes one value here, got {r}: bench and flops compare several")
        config = Merge(r=amounts[0])
    tokens = VisualTokens(keep=read_keep(keep))
    with progress_bar() as progress:
        progress(f"building {model}", 0, 2)
        on_meta = outline(model, size=size)
        progress("checking", 1, 2)
        found = check_model(on_meta, config, tokens, size)
    if json:
        print_json(with_command(found.to_dict()))
    else:
        print_parts(check_lines(found))
    return 0 if found.fits else 1
