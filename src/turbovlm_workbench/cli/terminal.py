"""What a terminal gets: no character that it cannot show, no control sequence of a name."""

from __future__ import annotations

import codecs
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

WIDTH = 200  # columns that the widest table needs
IN_ASCII = {"±": "+-", "→": "->", "…": "..."}
HANDLER = "turbovlm"
_command: ContextVar[str] = ContextVar("command", default="turbovlm")


def remember_command(argv: Sequence[str]) -> None:
    """Keep the command line for `command_line`."""
    _command.set(shlex.join(["turbovlm", *argv]))


def command_line() -> str:
    """The command that runs, as a shell takes it: results hold it."""
    return _command.get()


def with_command(data: Mapping[str, Any]) -> dict[str, Any]:
    """A result in JSON types, with the command that measured it before all else."""
    return {"command": command_line(), **data}


def visible(text: str) -> str:
    r"""The text with control characters as escapes, ``\x1b``; only line breaks and tabs stay.

    File names, model names and prompts may hold sequences that move the cursor or rename the
    window.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in text)


def tolerant_streams() -> None:
    """From now on stdout and stderr write what their encoding lacks as ASCII, not as an error."""
    codecs.register_error(HANDLER, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=HANDLER)


def show_all(*parts: RenderableType, file: TextIO | None = None) -> None:
    """Tables and texts, an empty line between them; numbers are never cut, and no text is markup.

    Args:
        parts: texts, or what rich can show.
        file: None for stdout.
    """
    width = max(WIDTH, Console(file=file).width)
    console = _Stdout(width=width, file=file, markup=False, emoji=False, highlight=False)
    for part in parts:
        if part is not parts[0]:
            console.print()
        if isinstance(part, str):
            console.print(visible(part), soft_wrap=True)
        else:
            console.print(_Visible(part), crop=False, soft_wrap=isinstance(part, Text))
    console.file.flush()


class Patient(Console):
    """A console that falls silent where its reader has gone: progress is not worth a run."""

    def on_broken_pipe(self) -> None:
        """Write no more; rich would end the program."""
        self.quiet = True


class _Stdout(Console):
    def on_broken_pipe(self) -> None:
        """Tell the caller, who has files to write; rich would end the program with code 1."""
        raise BrokenPipeError


class _Visible:
    """What it holds, with the control characters of its texts escaped."""

    def __init__(self, inner: RenderableType) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.inner, options):
            text = segment.text if segment.control else visible(segment.text)
            yield Segment(text, segment.style, segment.control)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(IN_ASCII.get(c, _escape(c)) for c in bad), error.end


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
