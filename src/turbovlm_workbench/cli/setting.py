"""One setting from the command line: ``--r 8 --method turbo``, or ``--config FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from turbovlm.config import Merge
from turbovlm.errors import ConfigError

Removed = Annotated[
    int | None, typer.Option("--r", help="Tokens removed in every block (default: none).")
]
Method = Annotated[
    str | None, typer.Option(help="turbo, redundancy, semantics, random (default: turbo).")
]
Alpha = Annotated[float | None, typer.Option(help="Weight of the semantic value in turbo.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many images.")]
Config = Annotated[
    Path | None, typer.Option(help="A saved setting, instead of --r.", metavar="FILE")
]


def read_setting(
    r: int | None, method: str | None, alpha: float | None, config: Path | None
) -> Merge | None:
    """What to merge; None where neither --r nor --config asks for it.

    Raises:
        ConfigError: for options without --r, or beside --config.
    """
    given = {"r": r, "method": method, "alpha": alpha}
    fields = {name: value for name, value in given.items() if value is not None}
    if config is not None:
        if fields:
            raise ConfigError("--config is a whole setting: leave --r, --method and --alpha out")
        return Merge.load(config)
    if r is None:
        if fields:
            flags = " and ".join(f"--{name}" for name in fields)
            raise ConfigError(f"{flags} without --r changes nothing: give --r, or leave it out")
        return None
    return Merge.from_dict(fields)


def check_limit(limit: int | None) -> None:
    """Raise `ConfigError` for a --limit below 1."""
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1, got {limit}")
