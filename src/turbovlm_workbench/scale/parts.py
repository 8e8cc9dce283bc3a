"""Parts on disk: one Parquet file each, that is there whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from turbovlm.errors import InputError
from turbovlm_workbench.scale.source import PictureSource, read_listing

LISTING = "listing.parquet"
"""What a job is over, part by part."""
PARTS, BAD = "parts", "bad"
"""Folders of the results, and of the pictures that could not be read."""
PART, OF, ID, DATA, ERROR = "part", "of", "id", "data", "error"
UNFINISHED = ".unfinished"
READ = pa.schema(
    {
        PART: pa.int64(),
        OF: pa.int64(),
        ID: pa.string(),
        DATA: pa.large_binary(),
        ERROR: pa.string(),
    }
)
"""A part as it is handed to a worker; ``of`` is how many pictures it has."""


def part_name(number: int) -> str:
    """The name of a part's files."""
    return f"part-{number:07d}.parquet"


def finished_parts(out: Path) -> dict[int, Path]:
    """The files of the parts that are done, by number, in order."""
    found = (re.fullmatch(r"part-(\d+)\.parquet", path.name) for path in (out / PARTS).glob("*"))
    numbers = sorted((int(match[1]), match[0]) for match in found if match)
    return {number: out / PARTS / name for number, name in numbers}


def clear_unfinished(out: Path) -> None:
    """Remove what a killed run was writing."""
    for folder in (PARTS, BAD):
        for path in (out / folder).glob(f"*{UNFINISHED}"):
            path.unlink(missing_ok=True)


def read_part(source: PictureSource, listing: Path, number: int) -> Iterator[pa.Table]:
    """One table with the pictures of a part, see `READ`.

    Raises:
        InputError: if a file of several pictures has become unreadable.
    """
    pictures = list(source.pictures(read_listing(listing, number)))
    columns = [
        [number] * len(pictures),
        [len(pictures)] * len(pictures),
        *(list(column) for column in zip(*pictures, strict=True)),
    ]
    arrays = [pa.array(c, kind) for c, kind in zip(columns, READ.types, strict=True)]
    yield pa.table(arrays, schema=READ)


def write_parts(out: Path, table: pa.Table) -> pa.Table:
    """Write whole parts; what is there already is replaced by the same.

    Args:
        out: the folder of the job.
        table: columns ``part``, ``of``, ``id``, ``error`` and a result, of one part or several.

    Returns:
        For each part its number, its pictures and the bad ones among them.

    Raises:
        InputError: if there is no room or no right to write.
    """
    rows = []
    for number in table[PART].unique().to_pylist():
        own = table.filter(pc.field(PART) == number)
        if len(own) != own[OF][0].as_py():
            raise RuntimeError(f"part {number} came in pieces: {len(own)} of {own[OF][0]} pictures")
        broken = pc.field(ERROR).is_valid()
        bad = own.filter(broken).select([ID, ERROR])
        if len(bad):  # first: the file of the results says that the part is done
            _write(bad, out / BAD / part_name(number))
        good = own.filter(~broken).drop_columns([PART, OF, ERROR])
        _write(good, out / PARTS / part_name(number))
        rows.append({PART: number, "pictures": len(own), "bad": len(bad)})
    return pa.Table.from_pylist(rows)


def _write(table: pa.Table, path: Path) -> None:
    beside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        try:
            with beside.open("wb") as file:
                pq.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError:
            with suppress(OSError):
                beside.unlink()
            raise
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}): make room, or choose another place; "
            "the same command goes on from what is written"
        ) from error
