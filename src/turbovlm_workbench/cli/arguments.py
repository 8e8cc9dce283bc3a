"""Options that take several values after one flag, ``--r 4 8 12 16``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from turbovlm.config import VisualTokens
from turbovlm.errors import ConfigError

SEVERAL = (
    "--r", "--ratio", "--speedup", "--keep", "--method", "--alpha", "--inflection", "--study",
)  # fmt: skip
DEFAULT_R = "4 8 12 16"
MODEL_HELP = (
    "timm:NAME, torchvision:NAME, open_clip:NAME, a local folder with a config.json, or a hub id "
    "of transformers."
)

Weights = Annotated[
    Path | None,
    typer.Option(
        help="Local checkpoint for timm:, torchvision: or open_clip:NAME.", metavar="FILE"
    ),
]
Amounts = Annotated[
    str | None,
    typer.Option(
        "--r", help=f"Tokens removed in every block (default: {DEFAULT_R}).", metavar="INT..."
    ),
]
Speedups = Annotated[
    str | None,
    typer.Option(
        help="Instead of --r, or beside it: how many times fewer operations the encoder's blocks "
        "shall need.",
        metavar="NUMBER...",
    ),
]
Keeps = Annotated[
    str | None,
    typer.Option(
        help="Shares, or numbers, of an image's tokens that a language model gets; alone, and "
        "together with each --r and --speedup.",
        metavar="KEEP...",
    ),
]
Beams = Annotated[
    int | None,
    typer.Option(help="Beams of a captioner (default: 3; 1 for a model that answers a prompt)."),
]
Batch = Annotated[int, typer.Option(help="Images per call.")]
JsonFile = Annotated[Path | None, typer.Option(help="Write the results as JSON.", metavar="FILE")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, ... (default: the accelerator if there is one).")
]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]


def join_values(argv: Sequence[str]) -> list[str]:
    """Rewrite ``--r 4 8 12`` as ``--r 4,8,12``, which is how the parser reads such options.

    All words up to the next option belong to the flag, so the model is named before it. Negative
    numbers count as values: they earn a better message than "no such option". A flag that is
    given twice keeps the values of both.
    """
    joined: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*joined, word, *words]
        if word not in SEVERAL:
            joined.append(word)
            continue
        values = []
        while words and (not words[0].startswith("-") or words[0][1:2].isdigit()):
            values.append(words.pop(0))
        if values and word in joined:
            joined[joined.index(word) + 1] += "," + ",".join(values)
        else:
            joined += [word, ",".join(values)] if values else [word]
    return joined


def join_command(argv: Sequence[str]) -> list[str]:
    """``eval generation`` is one command: it shares no data and few options with ``eval``."""
    words = list(argv)
    return [" ".join(words[:2]), *words[2:]] if words[:2] == ["eval", "generation"] else words


def names(text: str, flag: str) -> list[str]:
    """``"turbo,random"`` to its parts.

    Raises:
        ConfigError: if there is none.
    """
    parts = text.replace(",", " ").split()
    if not parts:
        raise ConfigError(f"{flag} needs at least one value")
    return parts


def whole_numbers(text: str, flag: str) -> list[int]:
    """``"4,8,12"`` to integers.

    Raises:
        ConfigError: for a part that is no integer, or none at all.
    """
    numbers = []
    for part in names(text, flag):
        try:
            numbers.append(int(part))
        except ValueError:
            raise ConfigError(
                f"{flag} takes integers, not {part!r}: {flag} 4 8 12 (the model is named before it)"
            ) from None
    return numbers


def numbers(text: str, flag: str) -> list[float]:
    """``"0.5,2"`` to numbers.

    Raises:
        ConfigError: for a part that is no number, or none at all.
    """
    found = []
    for part in names(text, flag):
        try:
            found.append(float(part))
        except ValueError:
            raise ConfigError(f"{flag} takes numbers, not {part!r}: {flag} 0.5 1 2") from None
    return found


def read_amounts(
    r: str | None, speedup: str | None, keep: str | None = None
) -> tuple[list[int], list[float]]:
    """The values of ``--r`` and of ``--speedup``; where nothing is given, the default ones of r.

    Raises:
        ConfigError: for a part that is no number, or none at all.
    """
    if r is None and speedup is None and keep is None:
        r = DEFAULT_R
    rs = [] if r is None else whole_numbers(r, "--r")
    return rs, [] if speedup is None else numbers(speedup, "--speedup")


def one_number(text: str, flag: str) -> float:
    """``"1.4"`` to a number, where a command takes no more than one.

    Raises:
        ConfigError: for several, or a part that is no number.
    """
    found = numbers(text, flag)
    if len(found) > 1:
        raise ConfigError(
            f"{flag} takes one value here, got {text}: bench and flops compare several"
        )
    return found[0]


def read_keep(text: str) -> float | int:
    """``"0.25"`` to a share, ``"64"`` to a number of tokens an image.

    Raises:
        ConfigError: for anything else; the range is checked by `turbovlm.VisualTokens`.
    """
    try:
        return int(text) if text.strip().isdigit() else float(text)
    except ValueError:
        raise ConfigError(
            f"--keep takes a share such as 0.25, or a number of tokens an image such as 64, not "
            f"{text!r}"
        ) from None


def read_keeps(text: str | None) -> list[VisualTokens]:
    """``"0.5,0.25"`` to settings; none where the flag is not given.

    Raises:
        ConfigError: for a part that is neither a share nor a number of tokens.
    """
    parts = [] if text is None else names(text, "--keep")
    return list(dict.fromkeys(VisualTokens(keep=read_keep(part)) for part in parts))


def read_share(text: str, flag: str) -> float:
    """``"1%"`` or ``"0.01"`` to a share above 0 and below 1.

    Raises:
        ConfigError: for anything else.
    """
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = 0.0
    value = value / 100 if text.strip().endswith("%") else value
    if not 0 < value < 1:
        raise ConfigError(f"{flag} takes a share above 0 and below 1, not {text!r}: 1% or 0.01")
    return value
