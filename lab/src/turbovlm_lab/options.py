"""Numbers on the command lines of the lab, checked before anything is drawn or trained."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

OUT = Path("turbovlm-lab-weights")
"""Where training writes by default: below the working directory, never into the package."""


def positive(text: str) -> float:
    """A finite number above 0."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0: give a number like 20")
    return number


def positive_count(text: str) -> int:
    """A whole number from 1."""
    number = _number(text)
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text} is no count: give a whole number from 1")
    return int(number)


def seed(text: str) -> int:
    """A whole number from 0 to 99."""
    number = _number(text)
    if number not in range(100):
        raise argparse.ArgumentTypeError(f"{text} is no seed: give a whole number from 0 to 99")
    return int(number)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no number: give one like 20")
    return number
