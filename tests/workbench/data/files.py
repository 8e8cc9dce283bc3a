"""Data sets as files. The readers open no image, so that empty files stand for images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(path: Path, value: Any) -> Path:
    """JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def lines(path: Path, *values: Any) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path
