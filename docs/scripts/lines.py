"""Count the lines of the packages at one or more commits, for docs/notes/house.md.

python docs/scripts/lines.py 8537378 HEAD
"""

from __future__ import annotations

import subprocess
import sys

WORKBENCH = ("cli", "models", "report", "tasks")
"""Rooms of the library's package that became the workbench."""


def part_of(path: str) -> str | None:
    """Library, workbench, lab, tests or benchmarks; None for what does not count."""
    rooms = path.split("/")
    if not path.endswith(".py"):
        return None
    if rooms[0] in ("tests", "benchmarks", "lab"):
        return rooms[0]
    if rooms[:2] == ["src", "turbovlm_workbench"]:
        return "workbench"
    if rooms[:2] == ["src", "turbovlm"]:
        return {"lab": "lab"}.get(rooms[2], "workbench" if rooms[2] in WORKBENCH else "library")
    return None


def git(*words: str) -> str:
    """What a command of git prints."""
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout


def count(commit: str) -> dict[str, tuple[int, int, int]]:
    """Files, lines, and lines with neither blanks alone nor a comment alone, of each part."""
    found: dict[str, tuple[int, int, int]] = {}
    for path in git("ls-tree", "-r", "--name-only", commit).splitlines():
        part = part_of(path)
        if part is None:
            continue
        lines = git("show", f"{commit}:{path}").splitlines()
        filled = sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)
        files, total, code = found.get(part, (0, 0, 0))
        found[part] = files + 1, total + len(lines), code + filled
    return found


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: files, lines, lines without blank ones and comments")
        for part, numbers in sorted(count(name).items()):
            print(f"  {part:<12}", *(f"{number:>7}" for number in numbers))
