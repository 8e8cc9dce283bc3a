"""The user's images: a folder, optional labels, and errors that name the file or row at fault."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from turbovlm.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""What a file may hold, whatever its name: decoders of pixels, none that runs a program (EPS)."""
IMAGE_COLUMNS = ("image", "file", "filename", "name")
LABEL_COLUMNS = ("label", "class", "target")


class Images(Protocol):
    """A fixed list of RGB images, decoded when asked for."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call image ``index`` in a report."""
        ...

    def image(self, index: int) -> Image.Image:
        """Image ``index`` in mode RGB."""
        ...


@dataclass(frozen=True)
class FirstImages:
    """The first ``count`` of ``images``, or all where there are fewer."""

    images: Images
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.images))

    def name(self, index: int) -> str:
        """What to call image ``index`` in a report."""
        return self.images.name(index)

    def image(self, index: int) -> Image.Image:
        """Image ``index`` in mode RGB."""
        return self.images.image(index)


@dataclass(frozen=True)
class ImageFolder:
    """The images below ``root``, sorted by path, with ``labels`` in the same order if known."""

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None = None

    @classmethod
    def open(cls, root: str | Path, labels: str | Path | None = None) -> ImageFolder:
        """Find the images below ``root`` (all subfolders) and read their labels.

        Every file's header is read here, so that a file that is no image at all stops a long
        run before it starts; damage further inside shows when the image is decoded.

        Args:
            root: the folder.
            labels: a CSV table of file names and integer labels, see ``read_labels``; looked
                for in the working directory first, then in ``root``.

        Raises:
            InputError: for a missing or empty folder, a file that is no image, or bad labels.
        """
        root = Path(root)
        paths = find_images(root)
        for path in paths:
            _open(path).close()
        table = None if labels is None else read_labels(_find_table(Path(labels), root), root)
        return cls(root, paths, None if table is None else _in_order(table, paths, root))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Path of image ``index`` relative to the folder."""
        return self.paths[index].relative_to(self.root).as_posix()

    def image(self, index: int) -> Image.Image:
        """Image ``index`` in mode RGB.

        Raises:
            InputError: if the file cannot be decoded.
        """
        return read_image(self.paths[index])


def find_images(root: Path) -> tuple[Path, ...]:
    """The image files below ``root`` by their endings, sorted; none is opened.

    Links that lead nowhere are among them, so that they are named when they are read.

    Raises:
        InputError: for a missing folder, one without images, or a subfolder that cannot be read.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise InputError(f"--images {root} {what}: give a folder of images")
    paths = tuple(sorted(walk_images(root)))
    if not paths:
        raise InputError(no_images(root))
    return paths


def walk_images(root: Path) -> Iterator[Path]:
    """The image files below ``root`` by their endings, one after the other: folders of millions
    never stand in memory as a whole. The order is the same on every machine.

    Raises:
        InputError: for a subfolder that cannot be read.
    """
    for folder, below, names in os.walk(root, onerror=_unreadable_folder):
        below.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES:
                yield path


def no_images(root: Path) -> str:
    """What to say of a folder without images."""
    return f"{root} holds no image: expected files ending in {', '.join(SUFFIXES)}"


def read_image(path: Path) -> Image.Image:
    """The image in a file, in mode RGB; 16 bits a pixel become 8.

    Raises:
        InputError: if it cannot be decoded.
    """
    with _open(path) as image:
        return _decoded(image, path)


def decode_image(data: bytes, name: str) -> Image.Image:
    """The image in the bytes of a file, in mode RGB, as `read_image`.

    Args:
        data: the bytes.
        name: what to call the image in an error.

    Raises:
        InputError: if it cannot be decoded.
    """
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise _unreadable(name, error) from error
    return _decoded(image, name)


def read_labels(table: Path, root: Path) -> dict[Path, int]:
    """Read a CSV table with a header: one image and one integer label (0, 1, ...) a row.

    The image column is one of ``IMAGE_COLUMNS``, the label column one of ``LABEL_COLUMNS``;
    further columns are ignored. File names are relative to ``root`` or to the table.

    Raises:
        InputError: if the table cannot be read, a column is missing, or a row is wrong.
    """
    labels: dict[Path, int] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            header = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = header
            image_column = _column(IMAGE_COLUMNS, header, table)
            label_column = _column(LABEL_COLUMNS, header, table)
            for row in rows:
                where = f"{table}, line {rows.line_num}"
                if None in row:
                    raise InputError(
                        f"{where}: more values than columns: quote a value that holds a comma"
                    )
                path = _locate(row[image_column] or "", table, root, where)
                if path in labels:
                    raise InputError(
                        f"{where}: {row[image_column]} has a label already: keep one row per image"
                    )
                labels[path] = _label(row[label_column], where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"cannot read the labels in {table} ({error}): give a CSV table in UTF-8"
        ) from error
    if not labels:
        raise InputError(f"{table} holds no row below its header: one image and label a row")
    return labels


def check_labels(labels: Sequence[int], classes: int) -> None:
    """Check that a model with ``classes`` outputs can be right about every label.

    Raises:
        InputError: for a label outside ``0 .. classes - 1``.
    """
    if max(labels) >= classes:
        raise InputError(
            f"the labels go up to {max(labels)}, but the model has {classes} classes "
            f"(0 to {classes - 1}): use labels that belong to this model"
        )


def _open(path: Path) -> Image.Image:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise ValueError("not a regular file")
        return Image.open(path, formats=FORMATS)
    except Exception as error:  # above Pillow's limit of pixels it is an Exception of its own
        raise _unreadable(path, error) from error


def _decoded(image: Image.Image, name: Path | str) -> Image.Image:
    try:
        return _eight_bits(image).convert("RGB")
    except Exception as error:  # damaged files raise many kinds in the decoders
        raise _unreadable(name, error) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits scaled to 8: Pillow's own conversion cuts off at 255, to white."""
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).astype(np.float64)
    return Image.fromarray((grey / 257).round().clip(0, 255).astype(np.uint8))


def _unreadable(path: Path | str, error: Exception) -> InputError:
    if isinstance(error, UnidentifiedImageError):
        cause = f"not an image file: its content is none of {', '.join(FORMATS)}"
    else:
        cause = str(error) or type(error).__name__
    return InputError(f"cannot read image {path} ({cause}): repair it or move it away")


def _unreadable_folder(error: OSError) -> None:
    raise InputError(
        f"cannot read the folder {error.filename} ({error.strerror}): allow it, or move it away"
    ) from error


def _find_table(table: Path, root: Path) -> Path:
    for candidate in (table, root / table):
        if candidate.is_file():
            return candidate
    raise InputError(f"no label table {table}, neither here nor in {root}: check --labels")


def _column(wanted: Sequence[str], header: Sequence[str], table: Path) -> str:
    found = [name for name in header if name.lower() in wanted]
    if len(found) > 1:
        raise InputError(
            f"{table} has several columns for one thing, {', '.join(found)}: keep one of them, or "
            "rename the others"
        )
    if found:
        return found[0]
    raise InputError(
        f"{table} has the columns {', '.join(header) or '(none)'}, but none of "
        f"{', '.join(wanted)}: rename one of them"
    )


def _locate(name: str, table: Path, root: Path, where: str) -> Path:
    if not name.strip():
        raise InputError(f"{where}: the file name is empty: fill it in or remove the row")
    for folder in (root, table.parent):
        path = folder / name.strip()
        if path.is_file():
            return path.resolve()
    raise InputError(f"{where}: no image {name} in {root}: remove the row or add the image")


def _label(text: str | None, where: str) -> int:
    try:
        label = int(text or "")
    except ValueError:
        label = -1
    if label < 0:
        raise InputError(f"{where}: label {text!r} is not a class number: use 0, 1, 2, ...")
    return label


def _in_order(labels: dict[Path, int], paths: Sequence[Path], root: Path) -> tuple[int, ...]:
    missing = [path for path in paths if path.resolve() not in labels]
    if missing:
        first = missing[0].relative_to(root)
        raise InputError(
            f"{len(missing)} of {len(paths)} images have no label, the first is {first}: "
            "add a row for each or move the images away"
        )
    return tuple(labels[path.resolve()] for path in paths)
