"""Predictions on disk: one JSON object a line, written batch by batch, read back after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from turbovlm.errors import InputError

Record = dict[str, Any]
"""What was predicted for one example, in JSON types; ``{"error": ...}`` for a broken image.

``READ`` is a digest of the files that it was predicted from, ``BASIS`` that of earlier records.
"""
READ, BASIS = "read", "basis"

SETTINGS = "settings.json"


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make ``folder`` the place of a run with ``settings``; a folder of the same run is taken up.

    Raises:
        InputError: if it holds anything else, which is left as it is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise InputError(
            f"cannot use the folder --out {folder} ({error.strerror}): choose another place"
        ) from error
    path = folder / SETTINGS
    wanted = json.loads(json.dumps(settings))
    if not entries:
        replace(path, json.dumps(wanted, indent=2) + "\n")
        return
    if SETTINGS not in entries:
        raise InputError(f"--out {folder} holds other files: choose an empty or a new folder")
    found = read_settings(folder)
    if found != wanted:
        keys = sorted(set(found) | set(wanted))
        other = [key for key in keys if found.get(key) != wanted.get(key)]
        first = other[0]
        raise InputError(
            f"--out {folder} holds a run with another {', '.join(other)} ({first}: "
            f"{found.get(first)!r} there, {wanted.get(first)!r} now): choose another --out, or "
            "remove that folder to begin anew"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """What the run in ``folder`` is.

    Raises:
        InputError: if it holds none.
    """
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}): choose another --out") from error
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror}): give the --out of a finished run"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is no JSON object: choose another --out")
    return found


def digest(examples: Iterable[Any]) -> str:
    """A fingerprint of the examples, so that a run never goes on with other data."""
    whole = hashlib.sha256()
    for example in examples:
        whole.update(json.dumps(example, sort_keys=True).encode() + b"\n")
    return whole.hexdigest()[:16]


class Records:
    """The records of one stage: one file for each process while it runs, one in the end."""

    def __init__(self, folder: Path, stage: str, rank: int = 0) -> None:
        self.folder, self.stage = folder, stage
        self.path = folder / f"{stage}.{rank}.part"
        self.final = folder / f"{stage}.jsonl"

    def read(self, basis: str = "") -> dict[str, Record]:
        """All records of this stage with that basis so far, by id; the last one of an id counts.

        Raises:
            InputError: for a line, other than a cut last one, that is no record.
        """
        kept = (record for record in self.every() if record.get(BASIS, "") == basis)
        return {record.pop("id"): record for record in kept}

    def every(self) -> Iterator[Record]:
        """All records of any basis, each with its id.

        Raises:
            InputError: as `read`.
        """
        for path in [self.final, *sorted(self.folder.glob(f"{self.stage}.*.part"))]:
            if path.exists():
                yield from _lines(path)

    def append(self, records: Mapping[str, Record]) -> None:
        """Add the records of a batch; when this returns they survive a kill."""
        text = "".join(json_line({"id": key, **record}) for key, record in records.items())
        with _writing(self.path):
            _drop_cut_line(self.path)
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())

    def finish(self, ids: Sequence[str], basis: str = "") -> dict[str, Record]:
        """Write all records into one file in the order of ``ids``; the parts go."""
        found = self.read(basis)
        ordered = {key: found[key] for key in ids}
        replace(self.final, "".join(json_line({"id": k, **r}) for k, r in ordered.items()))
        for part in self.folder.glob(f"{self.stage}.*.part"):
            part.unlink()
        return ordered


def replace(path: Path, text: str) -> None:
    """Write a file so that a kill or a full disk leaves the old or the new one, never half.

    Raises:
        InputError: if it cannot be written.
    """
    beside = path.with_name(path.name + ".new")
    with _writing(path):
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        except OSError:
            with suppress(OSError):
                beside.unlink()
            raise


def json_line(value: Any) -> str:
    """One line of JSON that can be read by eye, and that UTF-8 can hold.

    File names that are no UTF-8 hold halves of surrogate pairs; these alone are escaped.
    """
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value)
    return text + "\n"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}): make room, or choose another "
            "place; the same command goes on from what is written"
        ) from error


def _drop_cut_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        whole = file.read()
        if whole and not whole.endswith(b"\n"):
            file.truncate(whole.rfind(b"\n") + 1)


def _lines(path: Path) -> Iterable[Record]:
    text = path.read_bytes().decode("utf-8", errors="replace")
    complete, _, _ = text.rpartition("\n")
    lines = complete.split("\n") if complete else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                raise ValueError("no object with an id")
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number} is no record ({error}): remove that line, and the run "
                "predicts its example again"
            ) from error
        yield record
