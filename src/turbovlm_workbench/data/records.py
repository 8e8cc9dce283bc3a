"""JSON and JSON lines as records that know where they stand, for errors that name the place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from turbovlm.errors import InputError

Example = TypeVar("Example")


@dataclass(frozen=True)
class Record:
    """One JSON object and its place, e.g. "dev.jsonl, line 3" or "dev.json, images[2]"."""

    where: str
    fields: Mapping[str, Any]

    def __contains__(self, field: str) -> bool:
        return field in self.fields

    def text(self, field: str) -> str:
        """A text that is not blank."""
        return self._text(self._value(field), repr(field))

    def texts(self, field: str, inner: str = "", blank: bool = False) -> tuple[str, ...]:
        """A list of one text or more; items that are objects hold theirs in field ``inner``."""
        items = self._list(field)
        if not items:
            raise self.error(f"{field!r} is empty: give one or more, or remove the record")
        found = []
        for i, item in enumerate(items):
            name = f"'{field}[{i}]'"
            if inner and isinstance(item, dict):
                item, name = item.get(inner), f"'{field}[{i}].{inner}'"
            found.append(self._text(item, name, blank))
        return tuple(found)

    def key(self, field: str) -> str:
        """An identifier: a whole number or a text."""
        value = self._value(field)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self._text(value, repr(field))

    def records(self, field: str) -> list[Record]:
        """A list of one object or more."""
        items = self._list(field)
        if not items:
            raise self.error(f"{field!r} is empty: give the file that has them")
        return _records(items, f"{self.where}, {field}")

    def error(self, what: str) -> InputError:
        """An error in this record; ``what`` ends with the fix."""
        return InputError(f"{self.where}: {what}")

    def _value(self, field: str) -> Any:
        if field not in self.fields:
            raise self.error(
                f"there is no {field!r}, only {', '.join(self.fields) or 'an empty object'}: add it"
            )
        return self.fields[field]

    def _text(self, value: Any, name: str, blank: bool = False) -> str:
        if not isinstance(value, str) or not (blank or value.strip()):
            what = "a text" if blank else "a text that is not blank"
            raise self.error(f"{name} must be {what}, got {_short(value)}: correct it")
        return value

    def _list(self, field: str) -> list[Any]:
        value = self._value(field)
        if not isinstance(value, list):
            raise self.error(f"{field!r} must be a list, got {_short(value)}: correct it")
        return value


def read_file(path: Path) -> Record | list[Record]:
    """Read a file of JSON or of JSON lines (one object a line), whatever its ending.

    Returns:
        The records of a list or of lines, or the one record that a JSON object is.

    Raises:
        InputError: if the file cannot be read, or a part of it is no JSON object.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}: give the file of annotations")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}): give a JSON file in UTF-8") from error
    if path.suffix != ".jsonl":
        try:
            value = _parse(text)
        except ValueError as error:
            if not _is_object(text.lstrip().split("\n", 1)[0]):
                raise InputError(f"{path} is no JSON: {error}: repair it") from error
        else:
            if isinstance(value, dict) and value:
                return Record(str(path), value)
            if isinstance(value, list) and value:
                return _records(value, str(path))
            raise InputError(f"{path} holds {_short(value)}: give a JSON object or a list of them")
    return _lines(path, text)


def record_list(path: Path) -> list[Record]:
    """``load`` for layouts that are lists; a single object is a list of one."""
    found = read_file(path)
    return found if isinstance(found, list) else [found]


def distinct(examples: Iterable[tuple[str, str, Example]]) -> list[Example]:
    """The examples of (id, place, example), checked to have different ids.

    Raises:
        InputError: for an id that two records have, naming both.
    """
    places: dict[str, str] = {}
    found = []
    for key, where, example in examples:
        if key in places:
            raise InputError(f"{where} and {places[key]} are both {key!r}: keep one of them")
        places[key] = where
        found.append(example)
    return found


def find_image(record: Record, images: Path, names: Iterable[str]) -> Path:
    """The first of ``names`` that is a file below ``images``.

    Raises:
        InputError: if none is.
    """
    tried = list(dict.fromkeys(names))
    for name in tried:
        path = images / name
        if os.path.isfile(path):  # no error for a name that no file can have, unlike Path
            return path
    also = f" (nor {', '.join(tried[1:])})" if tried[1:] else ""
    raise record.error(
        f"no image {tried[0]}{also} in {images}: add the image, remove the record, or give the "
        "folder that names are relative to with --images"
    )


def _lines(path: Path, text: str) -> list[Record]:
    found = []
    # not splitlines: a JSON text may hold other line separators
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = _parse(line)
        except ValueError as error:
            raise InputError(f"{where}: no JSON ({error}): give one object a line") from error
        if not isinstance(value, dict):
            raise InputError(f"{where}: {_short(value)} is no JSON object: give one object a line")
        found.append(Record(where, value))
    if not found:
        raise InputError(f"{path} is empty: give one JSON object a line")
    return found


def _records(values: list[Any], where: str) -> list[Record]:
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            raise InputError(f"{where}[{i}]: {_short(value)} is no JSON object: remove it")
    return [Record(f"{where}[{i}]", value) for i, value in enumerate(values)]


def _parse(text: str) -> Any:
    """JSON whose objects have each name once.

    Raises:
        ValueError: for anything else, and for lists in lists beyond Python's depth.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name in found if [key for key, _ in pairs].count(name) > 1)
        raise ValueError(f"an object has {twice!r} twice")
    return found


def _is_object(line: str) -> bool:
    try:
        return isinstance(_parse(line), dict)
    except ValueError:
        return False


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
