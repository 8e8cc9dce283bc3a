"""Where results go: files checked before a long run, progress on stderr, the report on stdout."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from turbovlm.errors import InputError, TurboError
from turbovlm_workbench.cli.terminal import Patient, show_all, visible
from turbovlm_workbench.compare.rows import BenchReport


def check_writable(path: Path | None, flag: str) -> None:
    """Make sure that ``path`` can be written, without changing what may be there.

    Raises:
        InputError: if it is a folder, its folder is missing, or writing is not allowed.
    """
    if path is None:
        return
    target = Path(os.path.realpath(path))  # of a link to nothing the file that it would make
    existed = target.exists()
    try:
        target.open("ab").close()
    except OSError as error:
        raise InputError(
            f"cannot write {flag} {path} ({error.strerror or error}): choose another place"
        ) from error
    if not existed:
        target.unlink()


def check_outputs(files: Mapping[str, Path | None]) -> None:
    """`check_writable` of several files by their flags, of which no two may be one.

    Raises:
        InputError: as `check_writable`, or if one file would overwrite another.
    """
    known: dict[str, str] = {}
    for flag, path in files.items():
        check_writable(path, flag)
        if path is not None:
            before = known.setdefault(os.path.realpath(path), flag)
            if before != flag:
                raise InputError(f"{before} and {flag} name one file, {path}: give each its own")


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, through links; devices and pipes are written as they are.

    Raises:
        InputError: if it cannot be written; what was there before is left.
    """
    target = Path(os.path.realpath(path))
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
        else:
            _replace(target, data)
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}): choose another place"
        ) from error


def _replace(target: Path, data: bytes) -> None:
    try:
        number, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    except PermissionError:  # a file that may be changed in a folder that may not
        target.write_bytes(data)
        return
    beside = Path(name)
    try:
        with open(number, "wb") as file:
            file.write(data)
        beside.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        beside.replace(target)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def deliver(*steps: Callable[[], object] | None) -> None:
    """Do every step, whatever becomes of the others: each one keeps or shows what was measured.

    Args:
        steps: in order; None is left out.

    Raises:
        TurboError: of the first step that failed, after the last one is done.
        BrokenPipeError: if nothing else failed and the reader of stdout has gone.
        Exception: whatever else a step raised.
    """
    failures: list[Exception] = []
    for step in steps:
        try:
            if step is not None:
                step()
        except Exception as error:  # raised below, when the other steps are done
            failures.append(error)
    # a reader that went away wants no more; any other failure is worth a message
    failures.sort(key=lambda error: isinstance(error, BrokenPipeError))
    if failures:
        first = failures[0]
        if isinstance(first, TurboError | BrokenPipeError) or not isinstance(first, OSError):
            raise first
        raise InputError(
            f"not all results could be written ({first}): make room, or choose another place"
        ) from first


def write_json(data: Any, path: Path | None) -> None:
    """Plain data as a JSON file; None writes none."""
    if path is not None:
        write_file(path, json.dumps(data, indent=2) + "\n")


def show(report: BenchReport) -> None:
    """Table, notes and advice on stdout."""
    from turbovlm_workbench.report.table import bench_notes, bench_table

    notes = Text("\n".join(bench_notes(report)), style="dim")
    launches = [] if report.launches is None else [Text(report.launches, style="bold")]
    print_parts(bench_table(report), notes, *launches, Text(report.advice, style="bold"))


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """One bar on stderr that changes its label with the stage; it vanishes at the end."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=Patient(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("loading", total=None)

        def tell(stage: str, done: int, total: int) -> None:
            bar.update(task, description=visible(stage), completed=done, total=total)

        yield tell


def print_json(data: Any) -> None:
    """Plain data on stdout, for a script."""
    _on_stdout(lambda file: print(json.dumps(data, indent=2), file=file, flush=True))


def print_parts(*parts: Table | Text | str) -> None:
    """Tables and texts on stdout, an empty line between them; numbers are never cut."""
    _on_stdout(lambda file: show_all(*parts, file=file))


def _on_stdout(write: Callable[[Any], None]) -> None:
    """Write to stdout; where that fails (a full disk), to stderr, so that nothing is lost.

    Raises:
        InputError: if stdout could not be written.
        BrokenPipeError: if its reader has gone.
    """
    try:
        write(sys.stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        write(sys.stderr)
        raise InputError(
            f"cannot write to stdout ({error.strerror or error}): the results are on stderr"
        ) from error
