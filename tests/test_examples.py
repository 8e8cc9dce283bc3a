"""The examples run as they are printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def printed(name: str) -> str:
    command = [sys.executable, str(EXAMPLES / name)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_captioner_example() -> None:
    out = printed("captioner.py")
    lines = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    assert lines["unmerged"].strip() == lines["truth"].strip()
    assert "(189, 181, 173, 165, 157, 149, 141, 133)" in out


def test_question_example() -> None:
    answers = [line.split("  ")[1] for line in printed("question.py").splitlines() if "?" in line]
    assert len(answers) > 2
    for answer in answers:
        truth, unmerged, merged = (part.split(" ", 1)[1] for part in answer.split(", "))
        assert truth == unmerged == merged


def test_informativity_example() -> None:
    lines = printed("informativity.py").splitlines()
    assert [line.split()[3] for line in lines[1:9]] == [
        "183", "169", "155", "141", "127", "113", "99", "85",
    ]  # fmt: skip
    assert lines[9] == "the first block sees (1, 197, 160)"
