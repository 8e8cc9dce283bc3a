"""An encoder block by block: redundancy, concentration, tokens left, merge error, time share."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

import turbovlm
from turbovlm import hosts
from turbovlm.config import Merge
from turbovlm.errors import InputError
from turbovlm.measure import environment
from turbovlm.plug.encoder.find import Tower, find_towers
from turbovlm.plug.encoder.trace import BlockRecord
from turbovlm_workbench.analyze.numbers import (
    attention_concentration,
    merge_error,
    token_redundancy,
)

COLUMNS = ("redundancy", "concentration", "tokens", "merge_error")


@dataclass(frozen=True)
class BlockNumbers:
    """One block, means over the samples. What leads the sequence (cls, registers) and padding
    do not count, except among the tokens left.

    Attributes:
        block: from 1.
        redundancy: mean pairwise cosine of the tokens after the attention.
        concentration: share of the guide's attention in the top quarter of the tokens.
        tokens: left after the block, those that lead the sequence included.
        merge_error: distance of merged tokens to their mean over their length; None where the
            block merges nothing.
        time: share of the time from the first block's start to the end of the forward.
    """

    block: int
    redundancy: float | None
    concentration: float | None
    tokens: float | None
    merge_error: float | None
    time: float


@dataclass(frozen=True)
class Analysis:
    """A finished analysis of an encoder.

    Attributes:
        model: what the user called the model.
        tower: class of the encoder.
        guide: whose attention is meant: ``"cls"``, or the ``"mean"`` query.
        samples: how many the means are over.
        config: the setting of the second side; None without one.
        sides: by name, ``"unmerged"`` first: its blocks.
        environment: the machine and the versions of the libraries.
    """

    model: str
    tower: str
    guide: str
    samples: int
    config: Merge | None
    sides: Mapping[str, tuple[BlockNumbers, ...]]
    environment: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["config"] = None if self.config is None else self.config.to_dict()
        sides = {n: [dataclasses.asdict(b) for b in s] for n, s in self.sides.items()}
        return {**data, "sides": sides, "environment": dict(self.environment)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        config = None if data["config"] is None else Merge.from_dict(data["config"])
        sides = {n: tuple(BlockNumbers(**b) for b in s) for n, s in data["sides"].items()}
        return cls(**{**data, "config": config, "sides": sides})


def analyze_encoder(
    model: nn.Module,
    forward: Callable[[Any], object],
    batches: Iterable[Any],
    settings: Mapping[str, Merge],
    name: str = "",
) -> Analysis:
    """Look at every block of the first encoder of ``model``, unmerged and under each setting.

    Args:
        model: unpatched, in evaluation mode; it is left as it was.
        forward: runs it on one batch.
        batches: of whatever ``forward`` takes.
        settings: by name, what is merged on the sides beside the unmerged one.
        name: what to call the model.

    Raises:
        InputError: without a batch.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    tower = find_towers(model, hosts.rows(), hosts.REFUSALS)[0]
    todo = {"unmerged": Merge(r=0), **settings}
    sums = {side: _Sums(len(tower.blocks)) for side in todo}
    device = next(tower.module.parameters()).device
    for batch in batches:
        for side, config in todo.items():
            _run(tower, lambda given=batch: forward(given), model, config, sums[side])
    if not sums["unmerged"].samples:
        raise InputError("there is nothing to analyze: give at least one batch")
    return Analysis(
        model=name,
        tower=type(tower.module).__name__,
        guide=tower.row.guide_of(tower.module),
        samples=sums["unmerged"].samples,
        config=next(iter(settings.values()), None),
        sides={side: found.blocks() for side, found in sums.items()},
        environment=environment(device),
    )


@torch.inference_mode()
def _run(
    tower: Tower, forward: Callable[[], object], model: nn.Module, config: Merge, sums: _Sums
) -> None:
    """One batch: once observed, then once for the time."""
    with turbovlm.applied(model, config, record=False):
        with turbovlm.recording(tower.module, observe=sums.add):
            forward()
        starts = _starts(tower, forward)
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        sums.seconds[number % len(tower.blocks)] += end - start


class _Sums:
    """What was seen of one side so far, block by block."""

    def __init__(self, depth: int) -> None:
        self.values: list[dict[str, list[Tensor]]] = [
            {column: [] for column in COLUMNS} for _ in range(depth)
        ]
        self.seconds = [0.0] * depth

    @property
    def samples(self) -> int:
        """How many were seen."""
        return sum(map(len, self.values[0]["tokens"]))

    def add(self, record: BlockRecord) -> None:
        """What one block saw of one batch."""
        size = torch.ones_like(record.value) if record.size is None else record.size
        counted = size > 0
        left = counted.sum(1)
        found = self.values[record.block]
        if record.plan is not None:
            left = left - (size.gather(1, record.plan.source) > 0).sum(1)
            found["merge_error"].append(merge_error(record.tokens, size, record.plan))
        counted[:, : record.prefix_tokens] = False
        found["tokens"].append(left)
        found["redundancy"].append(token_redundancy(record.tokens, counted))
        found["concentration"].append(attention_concentration(record.value, counted))

    def blocks(self) -> tuple[BlockNumbers, ...]:
        """The means."""
        whole = sum(self.seconds)
        return tuple(
            BlockNumbers(
                block=number,
                time=seconds / whole,
                **{column: _mean(values[column]) for column in COLUMNS},
            )
            for number, (values, seconds) in enumerate(
                zip(self.values, self.seconds, strict=True), start=1
            )
        )


def _mean(values: Sequence[Tensor]) -> float | None:
    """The mean over all samples that have the number; None where none has."""
    if not values:
        return None
    mean = torch.cat(list(values)).double().nanmean().item()
    return None if math.isnan(mean) else mean


def _starts(tower: Tower, forward: Callable[[], object]) -> list[float]:
    """When each block began, and when the forward ended, in seconds.

    Hooks before a module do not change what is merged, while those after one count as readers.
    """
    device = next(tower.module.parameters()).device
    starts: list[float] = []

    def note(*_: object) -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        starts.append(time.perf_counter())

    blocks = {id(block): block for block in tower.blocks}.values()
    handles = [block.register_forward_pre_hook(note) for block in blocks]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    note()
    return starts
