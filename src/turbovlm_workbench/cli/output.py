"""Where results go: files checked before a long run, progress on stderr, the report on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from turbovlm.errors import InputError
from turbovlm_workbench.compare.rows import BenchReport

WIDTH = 160  # columns that the widest table needs


def check_writable(path: Path | None, flag: str) -> None:
    """Make sure that ``path`` can be written, without changing what may be there.

    Raises:
        InputError: if it is a folder, its folder is missing, or writing is not allowed.
    """
    if path is None:
        return
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise InputError(
            f"cannot write {flag} {path} ({error.strerror or error}): choose another place"
        ) from error
    if not existed:
        path.unlink()


def write_json(report: BenchReport, path: Path | None) -> None:
    """The report as a JSON file."""
    if path is not None:
        path.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")


def show(report: BenchReport) -> None:
    """Table, notes and advice on stdout."""
    from turbovlm_workbench.report.table import bench_notes, bench_table

    # Numbers are never cut: a narrow terminal wraps the lines, a file or a pipe takes them whole.
    console = Console(width=max(WIDTH, Console().width), soft_wrap=True)
    console.print(bench_table(report), no_wrap=True, crop=False)
    console.print()
    for note in bench_notes(report):
        console.print(note, style="dim", highlight=False, markup=False)
    console.print()
    console.print(report.advice, style="bold", highlight=False, markup=False)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """One bar on stderr that changes its label with the stage; it vanishes at the end."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("loading", total=None)

        def tell(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield tell


def print_json(data: Any) -> None:
    """Plain data on stdout, for a script."""
    print(json.dumps(data, indent=2))


def print_parts(*parts: Table | str) -> None:
    """Tables and texts on stdout, an empty line between them; numbers are never cut."""
    console = Console(width=max(WIDTH, Console().width))
    for part in parts:
        if part is not parts[0]:
            console.print()
        if isinstance(part, str):
            console.print(part, highlight=False, markup=False, soft_wrap=True)
        else:
            console.print(part, crop=False)
