"""One page from the results of several commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turbovlm import __version__
from turbovlm.errors import InputError, require
from turbovlm_workbench.report.outputs import with_outputs
from turbovlm_workbench.report.page import render
from turbovlm_workbench.report.sections import SECTIONS, Section, section_of, written_by

LARGEST = 3_000_000
"""Bytes that a page may have: it is sent by mail."""


def read_sections(paths: Sequence[Path]) -> list[Section]:
    """The sections of results, in order.

    An evaluation shows its outputs beside those of the unmerged run of the same model on the same
    data, where that one is among the results.

    Raises:
        InputError: for a file that cannot be read, or that none of the commands wrote.
        MissingExtra: if matplotlib is not installed.
    """
    require("matplotlib", "report")
    results = [(path, *_read(path)) for path in paths]
    runs = [(path, data) for path, data, kind in results if kind == "eval"]
    return [
        with_outputs(section, path, data, runs) if kind == "eval" else section
        for path, data, kind in results
        for section in [_section(path, data, kind)]
    ]


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """A result and which command wrote it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"cannot read the result {path} ({error}): give what --json wrote"
        ) from error
    kind = written_by(data) if isinstance(data, dict) else None
    if kind is None:
        raise InputError(
            f"{path} is no result of {', '.join(SECTIONS)}: give what --json wrote, or the "
            "result.json of turbovlm eval"
        )
    return data, kind


def _section(path: Path, data: Mapping[str, Any], kind: str) -> Section:
    try:
        return section_of(data, kind)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path} is no whole result of turbovlm {kind} ({type(error).__name__}: {error}): "
            "write it again with this version"
        ) from error


def report_page(sections: Sequence[Section], title: str) -> str:
    """The page as HTML: styles, plots and pictures are inside, nothing is fetched.

    Raises:
        InputError: if it would be larger than `LARGEST`.
        MissingExtra: if jinja2 is not installed.
    """
    require("jinja2", "report")
    from markupsafe import Markup

    first = min(sections, key=lambda section: section.rank)
    page = render(
        "report.html.j2",
        title=title,
        verdict=first.verdict,
        sections=sections,
        svg=Markup,
        version=__version__,
    )
    size = len(page.encode())
    if size > LARGEST:
        raise InputError(
            f"the page would have {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}: give fewer "
            "results, or show fewer pictures"
        )
    return page
