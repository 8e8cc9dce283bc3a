"""What a bench leaves as it was, and the several draws of a method that has a seed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import turbovlm
from tests.workbench import build
from turbovlm.config import Merge, VisualTokens
from turbovlm_workbench.compare.bench import run_bench
from turbovlm_workbench.compare.plan import BenchPlan
from turbovlm_workbench.compare.variants import many_compilations
from turbovlm_workbench.data.images import ImageFolder
from turbovlm_workbench.draws import DRAWS, draws_of
from turbovlm_workbench.load.skeleton import outline, silent
from turbovlm_workbench.report.table import bench_notes
from turbovlm_workbench.settings import combined, keep_of, merge_of
from turbovlm_workbench.tasks.registry import load_task


def test_only_a_method_with_a_seed_is_drawn_several_times() -> None:
    assert draws_of((Merge(r=4),)) == [(Merge(r=4),)]
    assert draws_of(()) == [()]
    drawn = draws_of((Merge(r=4, method="random", seed=3), VisualTokens(keep=0.5)))
    assert [merge_of(settings) for settings in drawn] == [
        Merge(r=4, method="random", seed=seed) for seed in (3, 5, 7, 9, 11)
    ]
    assert {keep_of(settings) for settings in drawn} == {VisualTokens(keep=0.5)}
    drawn = draws_of((VisualTokens(keep=0.5, method="random"),))
    assert drawn[-1] == (VisualTokens(keep=0.5, method="random", seed=8),)


def test_quality_of_random_is_the_mean_of_its_draws(tmp_path: Path) -> None:
    weights = build.timm_weights(tmp_path / "tiny.safetensors")
    images = ImageFolder.open(build.photos(tmp_path / "photos", 3))
    task = load_task(f"timm:{build.TINY}", weights)
    merges = [Merge(r=8), Merge(r=8, method="random")]
    report = run_bench(task, images, combined(merges, ()), BenchPlan(batch=3, rounds=2))
    pixels = task.pixels([images.image(index) for index in range(3)])
    before = task.outputs(task.model, pixels)
    kls = []
    for draw in draws_of((merges[1],)):
        with turbovlm.applied(task.model, *draw):
            after = task.outputs(task.model, pixels)
        kls.append(sum(score["kl"] for score in task.compare(before, after, 0)) / 3)
    assert len(set(kls)) == DRAWS
    assert report.rows[2].quality["kl"] == pytest.approx(sum(kls) / DRAWS, rel=1e-4)
    note = f"random: quality is the mean of {DRAWS} draws, speed that of the first."
    assert note in bench_notes(report)


def test_loading_leaves_the_default_generator_as_it_was(tmp_path: Path) -> None:
    weights = build.timm_weights(tmp_path / "tiny.safetensors")
    folder = build.vit_classifier(tmp_path / "vit")
    before = torch.get_rng_state()
    load_task(str(folder))
    outline(f"timm:{build.TINY}", "cpu")
    load_task(f"timm:{build.TINY}", weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_global_settings_are_put_back() -> None:
    logging.disable(logging.INFO)
    try:
        with silent():
            assert logging.root.manager.disable == logging.ERROR
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)
    limit = torch._dynamo.config.recompile_limit
    with pytest.raises(ZeroDivisionError), many_compilations([]):
        raise ZeroDivisionError
    assert torch._dynamo.config.recompile_limit == limit
