"""What a file holds, as a short text: names, sizes and dates do not tell two contents apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

LENGTH = 16  # characters kept of a SHA-256


def content_digest(paths: Sequence[Path]) -> str:
    """A digest of the bytes of ``paths`` in this order; a file that cannot be read counts too."""
    whole = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                one = hashlib.file_digest(file, "sha256").digest()
        except OSError:
            one = b"unreadable"
        whole.update(one)
    return whole.hexdigest()[:LENGTH]
