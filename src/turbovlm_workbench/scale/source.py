"""Where pictures come from: a folder of files, or Parquet files that hold their bytes.

Both are cut into parts, always the same ones for the same data. A part is a list of pieces: files,
or rows of one file. The listing of a job, a Parquet file itself, holds one row group a part.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from turbovlm.errors import ConfigError, InputError
from turbovlm_workbench.data.images import no_images, walk_images

PICTURES = 1000
"""Most pictures of a part, unless told otherwise: what a killed worker has to do again."""
BYTES = 32 * 2**20
"""Most bytes of a part's pictures, unless one alone has more: what a worker is handed at once."""
ROWS = 64  # of a Parquet file that are decoded at once
COLUMN = "image"
"""The column of the pictures in a Parquet file, unless told otherwise."""


class Piece(NamedTuple):
    """Some pictures that stand together.

    Attributes:
        file: name of the file below the source's root.
        start: the first row, 0 for a file that is a picture.
        pictures: how many.
        size: of the file in bytes, -1 where it cannot be asked.
    """

    file: str
    start: int
    pictures: int
    size: int


class FoundPicture(NamedTuple):
    """The bytes of one picture, or why there are none."""

    id: str
    data: bytes | None
    error: str | None


@dataclass(frozen=True)
class PictureSource(ABC):
    """Pictures in parts.

    Args:
        root: the folder that names are relative to.
        most: pictures of a part.

    Raises:
        ConfigError: if that is below 1.
    """

    root: Path
    most: int = PICTURES

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigError(f"--part must be at least 1, got {self.most}")

    @abstractmethod
    def parts(self) -> Iterator[list[Piece]]:
        """Every part, of `most` pictures and `BYTES` bytes at most.

        Raises:
            InputError: if there is nothing, or something cannot be read at all.
        """

    @abstractmethod
    def pictures(self, pieces: Sequence[Piece]) -> Iterator[FoundPicture]:
        """The pictures of a part, in order; those without readable bytes with an error.

        Raises:
            InputError: if a whole file has become unreadable.
        """


@dataclass(frozen=True)
class FolderSource(PictureSource):
    """The image files below a folder; a picture's id is its path from there."""

    def parts(self) -> Iterator[list[Piece]]:
        """See `PictureSource.parts`."""
        part: list[Piece] = []
        room = BYTES
        for path in walk_images(self.root):
            piece = Piece(path.relative_to(self.root).as_posix(), 0, 1, _size(path))
            if part and (len(part) == self.most or piece.size > room):
                yield part
                part, room = [], BYTES
            part.append(piece)
            room -= piece.size
        if not part:
            raise InputError(no_images(self.root))
        yield part

    def pictures(self, pieces: Sequence[Piece]) -> Iterator[FoundPicture]:
        """See `PictureSource.pictures`."""
        for piece in pieces:
            path = self.root / piece.file
            try:
                if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
                    raise OSError("not a regular file")
                yield FoundPicture(piece.file, path.read_bytes(), None)
            except OSError as error:
                why = f"cannot read image {path} ({error.strerror or error})"
                yield FoundPicture(piece.file, None, why)


@dataclass(frozen=True)
class ParquetSource(PictureSource):
    """Rows of Parquet files; a picture's id is ``FILE#ROW``.

    Args:
        files: names below the root, sorted.
        column: holds the bytes of an image file, or a struct with them in ``bytes``.
    """

    files: tuple[str, ...] = ()
    column: str = COLUMN

    def parts(self) -> Iterator[list[Piece]]:
        """See `PictureSource.parts`: whole row groups where they are small enough."""
        found = False
        for name in self.files:
            path = self.root / name
            with _open(path) as file:
                self._check(path, file.schema_arrow)
                groups = list(_groups(file.metadata, self.column))
            for start, count in _ranges(groups, self.most):
                found = True
                yield [Piece(name, start, count, _size(path))]
        if not found:
            raise InputError(f"{self.root} holds Parquet files without rows: give some with rows")

    def pictures(self, pieces: Sequence[Piece]) -> Iterator[FoundPicture]:
        """See `PictureSource.pictures`."""
        for piece in pieces:
            path = self.root / piece.file
            with _open(path) as file:
                try:
                    for row, value in _rows(file, self.column, piece):
                        yield _picture(f"{piece.file}#{row}", value)
                except (OSError, pa.ArrowException) as error:
                    raise InputError(
                        f"cannot read rows of {path} ({error}): repair the file, or move it away "
                        "and begin anew in another --out"
                    ) from error

    def _check(self, path: Path, schema: pa.Schema) -> None:
        if self.column not in schema.names:
            raise InputError(
                f"{path} has no column {self.column!r}, only {', '.join(schema.names)}: name the "
                "one that holds the pictures with --column"
            )
        kind = schema.field(self.column).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise InputError(
                f"the column {self.column!r} of {path} holds {kind}, no bytes of image files: name "
                "another --column, or give the folder of the pictures"
            )


def open_source(data: Path, column: str | None = None, most: int = PICTURES) -> PictureSource:
    """The pictures in a folder, in one Parquet file, or in a folder of Parquet files.

    A folder is one of Parquet if there is such a file in it.

    Args:
        data: the folder or file.
        column: of the pictures in Parquet files; None for `COLUMN`.
        most: pictures of a part.

    Raises:
        InputError: if there is nothing there, or a column is named of a folder of images.
        ConfigError: if ``most`` is below 1.
    """
    if data.is_file():
        if data.suffix.lower() != ".parquet":
            raise InputError(f"--data {data} is no .parquet: give a folder of images, or Parquet")
        return ParquetSource(data.parent.absolute(), most, (data.name,), column or COLUMN)
    if not data.is_dir():
        raise InputError(f"--data {data} does not exist: give a folder of images, or Parquet")
    if files := tuple(sorted(path.name for path in data.glob("*.parquet"))):
        return ParquetSource(data.absolute(), most, files, column or COLUMN)
    if column is not None:
        raise InputError(f"--column goes with Parquet, and {data} holds none: leave it out")
    return FolderSource(data.absolute(), most)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path} ({error}): repair it or move it away") from error


def _groups(metadata: pq.FileMetaData, column: str) -> Iterator[tuple[int, int]]:
    """Rows of every row group, and bytes of one column in it."""
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        chunks = (group.column(number) for number in range(group.num_columns))
        own = (c for c in chunks if c.path_in_schema.split(".")[0] == column)
        yield group.num_rows, sum(chunk.total_uncompressed_size for chunk in own)


def _ranges(groups: Sequence[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each part, from (rows, bytes) of the row groups.

    Small groups are put together, large ones are cut: that costs reading what stands before.
    """
    start = count = size = 0
    for rows, wide in groups:
        if count and (count + rows > most or size + wide > BYTES):
            yield start, count
            start, count, size = start + count, 0, 0
        pieces = max(ceil(rows / most), ceil(wide / BYTES))
        if pieces > 1:
            step = ceil(rows / pieces)
            yield from ((start + n, min(step, rows - n)) for n in range(0, rows, step))
            start += rows
        else:
            count, size = count + rows, size + wide
    if count:
        yield start, count


def _rows(file: pq.ParquetFile, column: str, piece: Piece) -> Iterator[tuple[int, Any]]:
    """Number and value of the rows of a piece."""
    first, groups, begin = 0, list[int](), 0
    for index in range(file.metadata.num_row_groups):
        after = first + file.metadata.row_group(index).num_rows
        if after > piece.start and first < piece.start + piece.pictures:
            begin = begin if groups else first
            groups.append(index)
        first = after
    end = piece.start + piece.pictures
    for batch in file.iter_batches(ROWS, row_groups=groups, columns=[column]):
        after = begin + len(batch)
        if after > piece.start and begin < end:
            low, high = max(piece.start - begin, 0), min(end - begin, len(batch))
            values = batch.column(0).slice(low, high - low)
            yield from enumerate((value.as_py() for value in values), begin + low)
        begin = after


def _picture(name: str, value: Any) -> FoundPicture:
    data = value.get("bytes") if isinstance(value, dict) else value
    return FoundPicture(name, data, None if data else f"cannot read image {name} (it has no bytes)")


def write_listing(parts: Iterator[list[Piece]], path: Path) -> None:
    """Parts to a file, one row group each."""
    schema = pa.schema(
        {"file": pa.string(), "start": pa.int64(), "pictures": pa.int64(), "size": pa.int64()}
    )
    with pq.ParquetWriter(path, schema) as writer:
        for part in parts:
            columns = zip(*part, strict=True)
            arrays = [pa.array(c, kind) for c, kind in zip(columns, schema.types, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=len(part))


def read_listing(path: Path, part: int) -> list[Piece]:
    """One part of a file that `write_listing` wrote."""
    with pq.ParquetFile(path) as file:
        return [Piece(**row) for row in file.read_row_group(part).to_pylist()]


def count_listing(path: Path) -> list[int]:
    """The number of pictures in each part."""
    with pq.ParquetFile(path) as file:
        counts = []
        for index in range(file.num_row_groups):
            group = file.read_row_group(index, columns=["pictures"])
            counts.append(sum(group["pictures"].to_pylist()))
        return counts
