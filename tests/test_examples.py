"""The examples run as they are printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_captioner_example() -> None:
    command = [sys.executable, str(EXAMPLES / "captioner.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines() if "  " in line)
    assert lines["unmerged"].strip() == lines["truth"].strip()
    assert "(189, 181, 173, 165, 157, 149, 141, 133)" in done.stdout
