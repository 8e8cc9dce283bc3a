"""The table of a bench, for the terminal; its columns serve the page too."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from turbovlm_workbench.compare.rows import BenchReport, BenchRow
from turbovlm_workbench.compare.titles import blocks_title
from turbovlm_workbench.draws import DRAWS, draws_of

MANY_FAULTS = 1000  # page faults of one call, from which they move ratios by some percent


def headers(report: BenchReport) -> list[str]:
    """Titles of the columns."""
    quality = [measure.title for measure in report.measures]
    return ["setting", "tokens", "GFLOPs", "ideal", "images/s", "speed-up", "peak MiB", *quality]


def bench_cells(report: BenchReport, row: BenchRow) -> list[str]:
    """One row, as text, in the order of `headers`."""
    speed = row.speedup
    return [
        row.name,
        str(row.tokens),
        f"{row.gflops:.{_decimals(report.rows[0].gflops)}f}",
        f"{row.ideal:.2f}x",
        f"{row.throughput:.{_decimals(row.throughput, 1)}f} ± {100 * row.spread:.0f} %",
        f"{speed.value:.2f}x"
        + ("" if row.name == row.baseline else f" [{speed.low:.2f}, {speed.high:.2f}]"),
        "-"
        if row.peak_mib is None
        else f"{row.peak_mib:.{_decimals(report.rows[0].peak_mib or 0, 1)}f}",
        *(measure.text(row.quality[measure.key]) for measure in report.measures),
    ]


def bench_notes(report: BenchReport) -> list[str]:
    """What the columns mean and what they were measured on, one sentence each."""
    env = report.environment
    cpu = f"{env['cpu']}, {env['threads']} thread{'s' if env['threads'] != 1 else ''}"
    machine = env["gpu"] if report.device == "cuda" else cpu
    compiled = ", both sides compiled" if report.compiled else ""
    lines = [
        f"{report.model}: {report.task} of {report.images} images; speed on {report.device} "
        f"({machine}), {report.dtype}, batch {report.batch}{compiled}.",
        "tokens: after the last block. GFLOPs: of one image, a multiply-add counted as one; ideal "
        "is what they allow.",
        f"speed-up: median of {report.rounds} interleaved rounds [{interval_text(report)}], "
        f"against {_baselines(report)}; ±: quartile distance.",
        "peak: memory of one call beyond weights and inputs.",
    ]
    faults = max(row.page_faults for row in report.rows if row.config is None)
    if faults > MANY_FAULTS and report.device == "cpu":
        lines.append(
            f"allocator: one unmerged call faults {faults:.0f} pages in, a cost that merging saves "
            "too and that operations do not count; run with MALLOC_MMAP_MAX_=0 "
            "MALLOC_TRIM_THRESHOLD_=100000000000 to measure without it."
        )
    lines += [f"{measure.title}: {measure.about}." for measure in report.measures]
    drawn = {
        row.config.method for row in report.rows if row.config and len(draws_of(row.config)) > 1
    }
    lines += [
        f"{method}: quality is the mean of {DRAWS} draws, speed that of the first."
        for method in sorted(drawn)
    ]
    lines += [
        f"{row.name}: r={blocks_title(row.r)}, as tokens@block."
        for row in report.rows
        if row.config is not None and row.config.speedup is not None and row.r is not None
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
        method = row.config.method if row.config else None
        if row is not report.rows[0] and method != last:
            view.add_row()
        last = method
        style = "bold green" if row.name == report.advised else ""
        view.add_row(*(Text(cell, style=style) for cell in bench_cells(report, row)))
    return view


def _decimals(value: float, most: int = 6) -> int:
    """So many that three digits of ``value`` show, and no more than ``most``."""
    return min(most, max(0, 2 - math.floor(math.log10(value)))) if value > 0 else 0


def _baselines(report: BenchReport) -> str:
    names = dict.fromkeys(row.baseline for row in report.rows if row.config is not None)
    kernel = "fused" if report.rows[-1].fused else "shipped"
    return f"{' and '.join(names) or 'nothing'} (the same {kernel} attention on both sides)"
