"""``turbovlm models``: what is supported, from the rows."""

from __future__ import annotations

from typing import Annotated

import typer


def models_command(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page docs/models.md.")
    ] = False,
) -> None:
    """List what can be patched: encoders, language models, denoisers; and what is refused.

    Example:

      turbovlm models --json
    """
    from turbovlm import hosts
    from turbovlm.errors import ConfigError
    from turbovlm.hosts import language
    from turbovlm_workbench.cli.output import print_json, print_parts
    from turbovlm_workbench.report import models as report

    if json and markdown:
        raise ConfigError("--json and --markdown are two forms of one list: give one")
    known = report.Supported(
        hosts.rows(), language.ROWS, hosts.denoisers(), hosts.REFUSALS, language.REFUSALS
    )
    if json:
        print_json(report.to_dict(known))
    elif markdown:
        print(report.markdown(known), end="")
    else:
        print_parts(*report.tables(known))
