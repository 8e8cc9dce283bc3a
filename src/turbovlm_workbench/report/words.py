"""Merged words, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turbovlm_workbench.report.marked import Mark

JOINED = " + "
NOTES = (
    "Words joined by + are one token after the block. It stands where its first word does; tokens "
    "merge by likeness, so its words need not be neighbours.",
)


def step_marks(words: Sequence[str], groups: Sequence[Sequence[int]]) -> list[Mark]:
    """The tokens after a block in words, each with whether it stands for several."""
    return [(JOINED.join(words[n] for n in group), len(group) > 1) for group in groups]


def word_lines(shown: Mapping[str, Any]) -> list[str]:
    """One text of `WordMap.to_dict`, a line a block; tokens of several words in brackets."""
    words = shown["words"]
    lines = [f"{shown['text']} ({len(words)} tokens)"]
    for side, steps in shown["sides"].items():
        lines.append(f"  {side}")
        for step in steps:
            told = [
                f"[{text}]" if several else text
                for text, several in step_marks(words, step["groups"])
            ]
            lines.append(f"    {step_title(step)}: {' '.join(told)}")
    return lines


def step_title(step: Mapping[str, Any]) -> str:
    """Which block it is, and what is left."""
    return f"block {step['block']}, {len(step['groups'])} tokens"
