"""``turbovlm models``: what is supported, from the rows."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page docs/models.md.")
    ] = False,
) -> None:
    """List the encoders that can be patched, and those that are refused with the reason.

    Example:

      turbovlm models --json
    """
    from turbovlm import hosts
    from turbovlm.cli.output import print_json, print_parts
    from turbovlm.errors import ConfigError
    from turbovlm.report import models as report

    if json and markdown:
        raise ConfigError("--json and --markdown are two forms of one list: give one")
    rows, refusals = hosts.rows(), hosts.REFUSALS
    if json:
        print_json(report.to_dict(rows, refusals))
    elif markdown:
        print(report.markdown(rows, refusals), end="")
    else:
        print_parts(*report.tables(rows, refusals))
