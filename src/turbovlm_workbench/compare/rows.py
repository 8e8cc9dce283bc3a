"""The result of a bench: one frozen row per setting, and the report that holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from turbovlm.measure.speed import Ratio
from turbovlm.notebook import html_table
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.settings import Settings, code_of, to_plain

Mode = Literal["eager", "compiled", "graph"]
FUSED = "unmerged, fused attention"


@dataclass(frozen=True)
class FirstToken:
    """How long a prompt takes until the first token of its answer is there.

    Attributes:
        seconds: of one call with the whole batch, the median.
        speedup: measured, over the baseline; the median over interleaved rounds.
    """

    seconds: float
    speedup: Ratio


@dataclass(frozen=True)
class EagerSpeed:
    """Speed in eager mode, beside that of compiled code or of a CUDA graph.

    Attributes:
        throughput: images a second, from the median time.
        speedup: measured, over the baseline in eager mode.
        limit: as in `BenchRow`, in eager mode.
    """

    throughput: float
    speedup: Ratio
    limit: Ratio | None


@dataclass(frozen=True)
class BenchRow:
    """One setting, measured.

    Attributes:
        name: e.g. ``"turbo r=8"``.
        settings: what is applied; nothing for an unmerged model.
        fused: whether `turbovlm.fuse_attention` replaced the shipped attention.
        baseline: name of the row that ``ideal`` and ``speedup`` refer to.
        tokens: sequence length after the encoder's last block, prefix tokens included; None where
            no row merges, so that it was not seen.
        r: tokens that each block of the encoder removed; None where nothing is merged.
        visual: tokens of an image that the language model gets; None where no row keeps fewer.
        gflops: multiply-adds of one image in units of 10^9 (the paper's convention).
        ideal: how many times fewer they are than the baseline's.
        throughput: images a second, from the median time.
        spread: distance between the quartiles of the time over its median.
        speedup: measured, over the baseline; the median over interleaved rounds.
        limit: what dropping as many tokens, with nothing to match or merge, gives over the
            baseline; None where that was not measured.
        eager: where the other speeds are those of another mode.
        page_faults: minor page faults of one call: thousands mean that part of the time goes to
            the system's allocator, which merging then saves too.
        peak_mib: peak memory of one call above what was held before, in MiB; None where the
            machine cannot tell.
        first_token: of a model that answers a prompt; None for others.
        quality: by the key of the measure, over all images; the loss is among them.
    """

    name: str
    settings: Settings
    fused: bool
    baseline: str
    tokens: int | None
    r: tuple[int, ...] | None
    visual: int | None
    gflops: float
    ideal: float
    throughput: float
    spread: float
    speedup: Ratio
    limit: Ratio | None
    eager: EagerSpeed | None
    page_faults: float
    peak_mib: float | None
    first_token: FirstToken | None
    quality: Mapping[str, float]

    @property
    def code(self) -> str:
        """The line that switches the setting on: only what differs from the defaults."""
        return code_of(self.settings, "turbovlm.fuse_attention(model)" if self.fused else "model")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["settings"] = to_plain(self.settings)
        data["speedup"] = dataclasses.asdict(self.speedup)
        for name in ("limit", "eager", "first_token"):
            if data[name] is not None:
                data[name] = dataclasses.asdict(data[name])
        data["quality"] = dict(self.quality)
        return data


@dataclass(frozen=True)
class BenchReport:
    """A finished bench.

    Attributes:
        model: the name it was loaded by.
        task: kind of the task.
        images: how many the quality columns rest on.
        batch: images per timed call.
        device: where it ran, e.g. ``"cpu"``.
        dtype: number format, e.g. ``"fp32"``.
        mode: how both sides of every ratio ran.
        rounds: interleaved rounds that were timed.
        measures: the quality columns, in order.
        loss: what settings are judged by, see `ImageTask.loss`.
        rows: the unmerged model first.
        advice: one sentence.
        launches: one sentence where launches are the cost, see
            `turbovlm_workbench.compare.launches`.
        advised: name of the row that it recommends, if any.
        environment: the machine and the versions of the libraries.
    """

    model: str
    task: str
    images: int
    batch: int
    device: str
    dtype: str
    mode: Mode
    rounds: int
    measures: tuple[Measure, ...]
    loss: Measure
    rows: tuple[BenchRow, ...]
    advice: str
    launches: str | None
    advised: str | None
    environment: Mapping[str, Any]

    def _repr_html_(self) -> str:
        """In a notebook: the table and the advice."""
        from turbovlm_workbench.report.table import bench_cells, headers

        rows = [bench_cells(self, row) for row in self.rows]
        strong = [n for n, row in enumerate(self.rows) if row.name == self.advised]
        return html_table(f"{self.task} of {self.model}", headers(self), rows, self.advice, strong)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["measures"] = [dataclasses.asdict(measure) for measure in self.measures]
        data["loss"] = dataclasses.asdict(self.loss)
        data["rows"] = [row.to_dict() for row in self.rows]
        data["environment"] = dict(self.environment)
        return data
