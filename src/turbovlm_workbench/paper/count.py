"""Count every row of the paper's FLOPs columns from the real models, on the meta device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import turbovlm
from turbovlm.errors import require
from turbovlm.measure.flops import flops
from turbovlm_workbench.paper.table import TABLE, Subject

LIBRARIES = {
    "transformers": "hf",
    "timm": "timm",
    "torchvision.models": "timm",
    "diffusers": "diffusion",
}
TOLERANCE = 1e-3
"""Relative difference to the exact figure up to which a row counts as equal."""


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper beside what the real model costs; GFLOPs count a multiply-add as one.

    Attributes:
        name: task and model.
        r: tokens merged in every block; 0 with no ratio is the unmerged model.
        published: GFLOPs that the paper prints, if they can be derived.
        exact: GFLOPs by the closed formulas of its convention.
        computed: GFLOPs counted now from the model.
        ideal: how many times fewer operations than the unmerged model's.
        throughput: the speed-up that the paper measured, if any.
        configuration: what was counted, in words.
        note: what sets this row apart from the others of its model.
        ratio: fraction of the tokens that a denoiser's modules are spared.
    """

    name: str
    r: int
    published: float | None
    exact: float
    computed: float
    ideal: float
    throughput: float | None
    configuration: str
    note: str
    ratio: float = 0.0

    @property
    def merged(self) -> str:
        """What was merged: r, a percentage, or nothing."""
        return f"{100 * self.ratio:.0f} %" if self.ratio else str(self.r or "")

    @property
    def error(self) -> float:
        """Relative difference of computed to exact."""
        return self.computed / self.exact - 1

    @property
    def equal(self) -> bool:
        """Whether computed is within `TOLERANCE` of exact."""
        return abs(self.error) <= TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**dataclasses.asdict(self), "error": self.error, "equal": self.equal}


def count_all(progress: Callable[[str, int, int], None]) -> list[PaperRow]:
    """Every row, in the paper's order; nothing is downloaded and no weights are held.

    Args:
        progress: is told what is being counted, how many rows are done, and of how many.

    Raises:
        MissingExtra: if a library that one of the models comes from is not installed.
    """
    for module, extra in LIBRARIES.items():
        require(module, extra)  # before half a minute of counting, not after it
    total = sum(len(subject.lines) for subject in TABLE)
    rows: list[PaperRow] = []
    for subject in TABLE:
        progress(subject.name, len(rows), total)
        for row in count(subject):
            rows.append(row)
            progress(subject.name, len(rows), total)
    return rows


def count(subject: Subject) -> Iterator[PaperRow]:
    """The rows of one model, which is built once."""
    with torch.device("meta"):
        model = subject.build()
    spoken = _spoken(subject, model)
    base = None
    for line in subject.lines:
        run = partial(subject.run, line.steps) if line.steps and not spoken else subject.run
        merged = turbovlm.applied(model, line.config) if line.config else nullcontext()
        with merged:
            gflops = _count(model, run) + sum(spoken[: line.steps])
        base = base or gflops
        yield PaperRow(
            name=subject.name,
            r=line.r,
            published=line.published,
            exact=line.exact,
            computed=gflops,
            ideal=base / gflops,
            throughput=line.throughput,
            configuration=subject.configuration,
            note=line.note,
            ratio=line.ratio,
        )


def _spoken(subject: Subject, model: nn.Module) -> list[float]:
    """GFLOPs of each step of a language model that does not depend on what was merged."""
    if subject.speak is None:
        return []
    steps = subject.speak(model)
    most = max(line.steps for line in subject.lines)
    return [_count(model, lambda _: next(steps)) for _ in range(most)]


def _count(model: nn.Module, run: Callable[[nn.Module], object]) -> float:
    with torch.device("meta"):
        return flops(model, (), call=lambda m, _: run(m)).gflops
