"""Two texts compared word by word."""

from __future__ import annotations

from difflib import SequenceMatcher

Mark = tuple[str, bool]
"""Words, and whether the other text has others in their place."""


def marked_words(before: str, after: str) -> list[Mark]:
    """``after`` in runs of words, each with whether it differs from ``before``."""
    ours, theirs = before.split(), after.split()
    marks: list[Mark] = []
    for tag, _, _, first, last in SequenceMatcher(None, ours, theirs, False).get_opcodes():
        if first != last:
            marks.append((" ".join(theirs[first:last]), tag != "equal"))
    return marks
