"""The command line. Only ``main`` is public; heavy libraries load inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``turbovlm`` and leave with its exit code.

    0: done; 1: the answer is no (`check`, `flops --paper`); 2: a mistake; 130: an interrupt.
    """
    from turbovlm.cli.app import run

    sys.exit(run(sys.argv[1:] if argv is None else argv))
