"""The table of a bench, for the terminal; its columns serve the page too."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from turbovlm.measure.speed import Ratio
from turbovlm_workbench.compare.rows import BenchReport, BenchRow
from turbovlm_workbench.compare.titles import blocks_title, line_of
from turbovlm_workbench.draws import DRAWS, draws_of
from turbovlm_workbench.settings import merge_of

MODES = {
    "eager": "",
    "compiled": ", both sides compiled",
    "graph": ", both sides in CUDA graphs",
}
MANY_FAULTS = 1000  # page faults of one call, from which they move ratios by some percent


def headers(report: BenchReport) -> list[str]:
    """Titles of the columns."""
    quality = [measure.title for measure in report.measures]
    titles = ["setting", "tokens"]
    titles += ["visual"] if _shows_visual(report) else []
    titles += ["GFLOPs", "ideal", "images/s", "speed-up"]
    titles += ["limit"] if _shows_limit(report) else []
    titles += ["eager speed-up"] if _shows_eager(report) else []
    titles += ["eager limit"] if _shows_limit(report) and _shows_eager(report) else []
    titles += ["first token", "speed-up to it"] if _shows_first(report) else []
    return [*titles, "peak MiB", *quality]


def bench_cells(report: BenchReport, row: BenchRow) -> list[str]:
    """One row, as text, in the order of `headers`."""
    whole = row.name == row.baseline
    visual = [_count(row.visual)] if _shows_visual(report) else []
    beside = [_limit(row.limit)] if _shows_limit(report) else []
    if row.eager is not None:
        beside.append(ratio_text(row.eager.speedup, whole))
        beside += [_limit(row.eager.limit)] if _shows_limit(report) else []
    first = []
    if row.first_token is not None:
        ms = 1e3 * row.first_token.seconds
        first = [f"{ms:.{_decimals(ms, 1)}f} ms", ratio_text(row.first_token.speedup, whole)]
    return [
        row.name,
        _count(row.tokens),
        *visual,
        f"{row.gflops:.{_decimals(report.rows[0].gflops)}f}",
        f"{row.ideal:.2f}x",
        f"{row.throughput:.{_decimals(row.throughput, 1)}f} ± {100 * row.spread:.0f} %",
        ratio_text(row.speedup, whole),
        *beside,
        *first,
        "-"
        if row.peak_mib is None
        else f"{row.peak_mib:.{_decimals(report.rows[0].peak_mib or 0, 1)}f}",
        *(measure.text(row.quality[measure.key]) for measure in report.measures),
    ]


def ratio_text(ratio: Ratio, whole: bool) -> str:
    """A speed-up with its interval, or without one where the model is compared with itself."""
    return f"{ratio.value:.2f}x" + ("" if whole else f" [{ratio.low:.2f}, {ratio.high:.2f}]")


def bench_notes(report: BenchReport) -> list[str]:
    """What the columns mean and what they were measured on, one sentence each."""
    env = report.environment
    cpu = f"{env['cpu']}, {env['threads']} thread{'s' if env['threads'] != 1 else ''}"
    machine = env["gpu"] if report.device == "cuda" else cpu
    mode = MODES[report.mode]
    lines = [
        f"{report.model}: {report.task} of {report.images} images; speed on {report.device} "
        f"({machine}), {report.dtype}, batch {report.batch}{mode}.",
        "tokens: after the last block. GFLOPs: of one image, a multiply-add counted as one; ideal "
        "is what they allow.",
        f"speed-up: median of {report.rounds} interleaved rounds [{interval_text(report)}], "
        f"against {_baselines(report)}; ±: quartile distance.",
        "peak: memory of one call beyond weights and inputs.",
    ]
    if _shows_limit(report):
        lines.append(
            "limit: the same speed-up where tokens are dropped and none is matched or merged, each "
            "block on as many as have the operations that it has with the merge."
        )
    if _shows_eager(report):
        lines.append("eager: the same two without compilation and CUDA graphs.")
    if _shows_visual(report):
        lines.append("visual: tokens of an image that the language model gets.")
    if _shows_first(report):
        lines.append("first token: of a call with the whole batch, until it is there.")
    faults = max(row.page_faults for row in report.rows if not row.settings)
    if faults > MANY_FAULTS and report.device == "cpu":
        lines.append(
            f"allocator: one unmerged call faults {faults:.0f} pages in, a cost that merging saves "
            "too and that operations do not count; run with MALLOC_MMAP_MAX_=0 "
            "MALLOC_TRIM_THRESHOLD_=100000000000 to measure without it."
        )
    lines += [f"{measure.title}: {measure.about}." for measure in report.measures]
    drawn = {line_of(row.settings) for row in report.rows if len(draws_of(row.settings)) > 1}
    lines += [
        f"{line}: quality is the mean of {DRAWS} draws, speed that of the first."
        for line in sorted(filter(None, drawn))
    ]
    lines += [
        f"{row.name}: r={blocks_title(row.r)}, as tokens@block."
        for row in report.rows
        if (merge := merge_of(row.settings)) is not None
        and merge.speedup is not None
        and row.r is not None
    ]
    return lines


def interval_text(report: BenchReport) -> str:
    """What the brackets after a speed-up hold."""
    # With fewer rounds no order statistic holds the median with 95 % probability.
    return "95 % interval" if report.rounds >= 6 else "lowest, highest"


def bench_table(report: BenchReport) -> Table:
    """The table for the terminal; a line separates the methods, the advised row is bold."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for title in headers(report):
        left = title == "setting"
        view.add_column(title, justify="left" if left else "right", no_wrap=True)
    last = None
    for row in report.rows:
        line = line_of(row.settings)
        if row is not report.rows[0] and line != last:
            view.add_row()
        last = line
        style = "bold green" if row.name == report.advised else ""
        view.add_row(*(Text(cell, style=style) for cell in bench_cells(report, row)))
    return view


def _shows_visual(report: BenchReport) -> bool:
    return any(row.visual is not None for row in report.rows)


def _shows_limit(report: BenchReport) -> bool:
    return any(row.limit is not None for row in report.rows)


def _shows_eager(report: BenchReport) -> bool:
    return any(row.eager is not None for row in report.rows)


def _limit(limit: Ratio | None) -> str:
    return "-" if limit is None else f"{limit.value:.2f}x"


def _shows_first(report: BenchReport) -> bool:
    return any(row.first_token is not None for row in report.rows)


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _decimals(value: float, most: int = 6) -> int:
    """So many that three digits of ``value`` show, and no more than ``most``."""
    return min(most, max(0, 2 - math.floor(math.log10(value)))) if value > 0 else 0


def _baselines(report: BenchReport) -> str:
    names = dict.fromkeys(row.baseline for row in report.rows if row.settings)
    kernel = "fused" if report.rows[-1].fused else "shipped"
    return f"{' and '.join(names) or 'nothing'} (the same {kernel} attention on both sides)"
