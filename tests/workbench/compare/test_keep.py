"""A bench of a model that hands fewer visual tokens to its language model, alone and merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import turbovlm
from tests.workbench import build
from turbovlm.config import Merge, VisualTokens
from turbovlm.errors import UnknownArchitecture
from turbovlm_workbench.compare.bench import run_bench
from turbovlm_workbench.compare.plan import BenchPlan
from turbovlm_workbench.compare.rows import BenchReport
from turbovlm_workbench.compare.samples import show_some
from turbovlm_workbench.data.images import ImageFolder
from turbovlm_workbench.report.page import bench_page
from turbovlm_workbench.report.table import bench_cells, bench_notes, bench_table, headers
from turbovlm_workbench.settings import combined
from turbovlm_workbench.tasks.captioning import Captioning
from turbovlm_workbench.tasks.registry import load_task

KEEPS = [VisualTokens(keep=0.5), VisualTokens(keep=4)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keep")
    build.llava(folder / "llava")
    build.noise(folder / "noise", 4)
    return folder


@pytest.fixture(scope="module")
def images(place: Path) -> ImageFolder:
    return ImageFolder.open(place / "noise")


@pytest.fixture(scope="module")
def task(place: Path) -> Any:
    return load_task(str(place / "llava"))


@pytest.fixture(scope="module")
def report(task: Captioning, images: ImageFolder) -> BenchReport:
    variants = combined([Merge(r=8)], KEEPS)
    return run_bench(task, images, variants, BenchPlan(batch=2, rounds=2))


def test_each_alone_and_together(report: BenchReport) -> None:
    assert [row.name for row in report.rows] == [
        "unmerged", "turbo r=8", "keep=0.5", "keep=4", "turbo r=8 keep=0.5", "turbo r=8 keep=4"
    ]  # fmt: skip
    assert [row.tokens for row in report.rows] == [65, 41, 65, 65, 41, 41]
    assert [row.r for row in report.rows[:3]] == [None, (8, 8, 8), None]
    assert [row.visual for row in report.rows] == [64, 64, 32, 4, 32, 4]
    whole, merged, half, four, both, _ = report.rows
    assert whole.gflops > half.gflops > four.gflops
    assert both.gflops < min(merged.gflops, half.gflops)
    assert four.quality["loss"] > 0 == whole.quality["loss"]
    assert both.code == (
        "turbovlm.apply(model, turbovlm.Merge(r=8), turbovlm.VisualTokens(keep=0.5))"
    )
    told = json.loads(json.dumps(report.to_dict()))["rows"]
    assert told[0]["settings"] is None
    assert told[2]["settings"] == {"kind": "visual_tokens", "keep": 0.5}
    assert [part["kind"] for part in told[4]["settings"]] == ["merge", "visual_tokens"]
    assert told[4]["first_token"]["seconds"] > 0


def test_quality_is_that_of_the_applied_model(
    report: BenchReport, task: Captioning, images: ImageFolder
) -> None:
    pixels = task.pixels([images.image(index) for index in range(4)])
    before = task.outputs(task.model, pixels)
    with turbovlm.applied(task.model, Merge(r=8), KEEPS[1]):
        after = task.outputs(task.model, pixels)
    same = sum(a == b for a, b in zip(before, after, strict=True)) / 4
    assert report.rows[-1].quality["exact"] == same < 1


def test_the_first_token_stands_beside_the_whole(report: BenchReport) -> None:
    rows = [
        dict(zip(headers(report), bench_cells(report, row), strict=True)) for row in report.rows
    ]
    assert rows[0]["first token"].endswith(" ms")
    assert rows[0]["speed-up to it"] == "1.00x"
    assert "[" in rows[2]["speed-up to it"]
    assert [row["visual"] for row in rows] == ["64", "64", "32", "4", "32", "4"]
    for row in report.rows:
        assert row.first_token is not None
        assert row.first_token.seconds < report.batch / row.throughput
    notes = bench_notes(report)
    assert "visual: tokens of an image that the language model gets." in notes
    console = Console(width=250, record=True, quiet=True)
    console.print(bench_table(report))


def test_without_merging_the_encoder_is_not_looked_into(
    task: Captioning, images: ImageFolder
) -> None:
    found = run_bench(task, images, [(KEEPS[0],)], BenchPlan(batch=2, rounds=2))
    assert [row.tokens for row in found.rows] == [None, None]
    assert bench_cells(found, found.rows[1])[1:3] == ["-", "32"]
    samples, name = show_some(task, images, found, 2)
    assert name == "keep=0.5"
    for sample in samples:
        assert sample.owner.shape == (8, 8)
        assert sample.tokens == 32
        assert len(set(sample.owner.reshape(-1).tolist())) == 32
    pytest.importorskip("jinja2")
    assert "keep=0.5" in bench_page(found, samples, name)


def test_a_model_without_a_language_model(tmp_path: Path, images: ImageFolder) -> None:
    task = load_task(str(build.vit_classifier(tmp_path / "vit")))
    with pytest.raises(UnknownArchitecture, match="no vision-language model whose prompt"):
        run_bench(task, images, [(KEEPS[0],)], BenchPlan(batch=2, rounds=2))
