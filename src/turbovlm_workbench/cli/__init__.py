"""The command line. Only ``main`` is public; heavy libraries load inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from turbovlm.errors import MissingExtra

PACKAGES = ("typer", "rich", "numpy", "PIL", "safetensors")
"""What the extra ``cli`` installs, by the names they are imported by."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``turbovlm`` and leave with its exit code.

    0: done; 1: the answer is no (`check`, `flops --paper`, `tune`); 2: a mistake; 70: an
    unexpected error, with its traceback; 130: an interrupt; 141: stdout was closed.
    """
    for package in PACKAGES:
        if find_spec(package) is None:
            print(f"error: {MissingExtra(package, 'cli')}", file=sys.stderr)
            sys.exit(2)
    from turbovlm_workbench.cli.app import run_command

    sys.exit(run_command(sys.argv[1:] if argv is None else argv))
