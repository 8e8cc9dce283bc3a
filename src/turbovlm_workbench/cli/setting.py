"""Settings from flags: ``--r 8``, ``--speedup 1.4``, ``--keep 0.25``, or ``--config FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbovlm.config import Merge, VisualTokens
from turbovlm.errors import ConfigError
from turbovlm_workbench.cli.arguments import read_keep

if TYPE_CHECKING:
    from turbovlm_workbench.settings import Settings

Removed = Annotated[
    int | None, typer.Option("--r", "-r", help="Tokens removed in every block (default: none).")
]
Speedup = Annotated[
    float | None,
    typer.Option(
        help="Instead of --r, how many times fewer operations the encoder's blocks shall need."
    ),
]
Method = Annotated[
    str | None, typer.Option(help="turbo, redundancy, semantics, random (default: turbo).")
]
Alpha = Annotated[float | None, typer.Option(help="Weight of the semantic value in turbo.")]
Keep = Annotated[
    str | None,
    typer.Option(
        help="Share, or number, of an image's tokens that a language model gets; alone or with "
        "--r or --speedup.",
        metavar="KEEP",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Only the first so many images.")]
Config = Annotated[
    Path | None, typer.Option(help="A saved setting, instead of all these.", metavar="FILE")
]


def given_settings(
    fields: dict[str, Any], keep: str | None = None, config: Path | None = None
) -> Settings:
    """What to apply; nothing where neither the flags nor --config ask for it.

    Args:
        fields: of a `Merge`, by the name of their flags; None for a flag that is not given.
        keep: of `VisualTokens`.
        config: a file with whole settings.

    Raises:
        ConfigError: for flags without --r or --speedup, or beside --config.
    """
    from turbovlm_workbench.settings import load_settings

    given = {name: value for name, value in fields.items() if value is not None}
    if config is not None:
        if given or keep is not None:
            flags = [*(f"--{name}" for name in given), *(["--keep"] if keep is not None else [])]
            raise ConfigError(f"--config is a whole setting: leave {' and '.join(flags)} out")
        return load_settings(config)
    kept = () if keep is None else (VisualTokens(keep=read_keep(keep)),)
    if "r" in given or "speedup" in given:
        return (Merge.from_dict(given), *kept)
    if given:
        flags = " and ".join(f"--{name}" for name in given)
        raise ConfigError(
            f"{flags} without --r or --speedup changes nothing: give one of the two, or leave it "
            "out"
        )
    return kept


def given_merge(fields: dict[str, Any], config: Path | None) -> Merge | None:
    """`given_settings` for a command that looks at an encoder; None for the model as it is.

    Raises:
        ConfigError: as there, or for a file with another setting than one `Merge`.
    """
    settings = given_settings(fields, config=config)
    if not settings:
        return None
    first, *more = settings
    if more or not isinstance(first, Merge):
        raise ConfigError(f"{config} holds {settings}: this command takes one Merge")
    return first


def check_limit(limit: int | None) -> None:
    """Raise `ConfigError` for a --limit below 1."""
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1, got {limit}")
