"""Random trials for a while: ``make fuzz``, or ``python -m tests.fuzz.run``.

TURBOVLM_FUZZ_SECONDS (3600) says how long, TURBOVLM_FUZZ_SEED (0) where to begin. Trial number i
of a kind draws from the seed and i alone, so that what is reported can be run again.
"""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tests.fuzz.commands import commands
from tests.fuzz.denoisers import blocks, generation
from tests.fuzz.language import prompts
from tests.fuzz.settings import files, settings
from tests.fuzz.trials import invariants, literal, orders, padding, threads

KINDS: dict[str, Callable[[random.Random], None]] = {
    f.__name__: f
    for f in (
        literal, invariants, padding, orders, threads, generation, blocks, prompts, commands,
        settings, files,
    )
}  # fmt: skip

SHARES = {"settings": 0.2, "files": 0.5}
"""Of the time that the other kinds get: these two are quick."""


@dataclass
class Count:
    """What came of one kind of trial."""

    tried: int = 0
    wrong: int = 0
    crashed: int = 0
    seconds: float = 0.0
    reports: list[str] = field(default_factory=list)


def fuzz(seconds: float, seed: int) -> dict[str, Count]:
    """Trials of all kinds, each in its share of the time."""
    torch.set_num_threads(1)
    counts = {kind: Count() for kind in KINDS}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        kind = min(counts, key=lambda k: counts[k].seconds / SHARES.get(k, 1))
        count = counts[kind]
        began = time.monotonic()
        try:
            with torch.no_grad():
                KINDS[kind](random.Random(f"{seed} {kind} {count.tried}"))
        except AssertionError as error:
            count.wrong += 1
            count.reports.append(f"{kind} {count.tried}: WRONG {error}")
        except Exception:
            count.crashed += 1
            count.reports.append(f"{kind} {count.tried}: CRASH {traceback.format_exc(limit=-4)}")
        count.tried += 1
        count.seconds += time.monotonic() - began
    return counts


def table(counts: dict[str, Count]) -> str:
    """The counts as a table of Markdown."""
    lines = ["| trials | tried | wrong | crashed |", "| --- | --- | --- | --- |"]
    lines += [f"| {kind} | {c.tried} | {c.wrong} | {c.crashed} |" for kind, c in counts.items()]
    return "\n".join(lines)


def main() -> int:
    """Run, print, and say by the exit code whether all was right."""
    seed = int(os.environ.get("TURBOVLM_FUZZ_SEED", "0"))
    counts = fuzz(float(os.environ.get("TURBOVLM_FUZZ_SECONDS", "3600")), seed)
    reports = [report for count in counts.values() for report in count.reports]
    print(*reports, f"seed {seed}", table(counts), sep="\n")
    return 1 if reports else 0


if __name__ == "__main__":
    sys.exit(main())
