"""``turbovlm report``: one page from what the other commands measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OUT = Path("turbovlm-report.html")


def report_command(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="What --json of bench, sweep, tune, analyze, ablate and show wrote, or the "
            "result.json of eval.",
            metavar="RESULT...",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page to write.", metavar="FILE")
    ] = OUT,
    title: Annotated[str, typer.Option(help="Of the page.")] = "turbovlm: what was measured",
) -> None:
    """Write one page that needs nothing else: verdict, plots, tables, merge maps, commands.

    Example:

      turbovlm report bench.json blocks.json maps.json -o report.html
    """
    from turbovlm.errors import require
    from turbovlm_workbench.cli.output import check_writable, deliver, print_parts, write_file
    from turbovlm_workbench.report.whole import read_sections, report_page

    check_writable(out, "--out")
    require("jinja2", "report")
    page = report_page(read_sections(results), title)
    deliver(lambda: write_file(out, page), lambda: print_parts(f"page: {out}"))
