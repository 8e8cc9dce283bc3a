"""Another run that this one is compared with: checked before this one begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turbovlm.errors import InputError
from turbovlm_workbench.data.predictions import READ, Records, read_settings
from turbovlm_workbench.run.result import SCORES, read_scores


def check_against(folder: Path, settings: Mapping[str, Any]) -> None:
    """Check that ``folder`` is a finished run on the same data.

    Args:
        folder: the ``--out`` of the other run.
        settings: of this run; "task" and "data" must be equal.

    Raises:
        InputError: if it is not.
    """
    read_scores(folder / SCORES)
    theirs = read_settings(folder)
    for key in ("task", "data"):
        if theirs.get(key) != settings[key]:
            raise InputError(
                f"--against {folder} is a run with another {key} ({theirs.get(key)!r} there, "
                f"{settings[key]!r} here): compare runs on the same data"
            )


def known_content(folder: Path, stage: str) -> dict[str, str]:
    """By id the digest of the files that a run read in a stage; broken ones are left out."""
    places = [folder, *sorted(folder.glob("draw*"))]
    records = (record for place in places for record in Records(place, stage).every())
    return {r["id"]: r[READ] for r in records if READ in r and "error" not in r}
