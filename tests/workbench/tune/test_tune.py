"""The search on a small real model, with the time of a call counted instead of measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import turbovlm
from tests.workbench import build
from turbovlm.config import Merge, VisualTokens
from turbovlm.errors import ConfigError, InputError, ModelError, UnknownArchitecture
from turbovlm.measure import Timing
from turbovlm_workbench.compare.plan import BenchPlan
from turbovlm_workbench.data.images import ImageFolder
from turbovlm_workbench.load.loaded import UNMERGED
from turbovlm_workbench.settings import from_plain, keep_of, merge_of
from turbovlm_workbench.tasks.image import ImageTask
from turbovlm_workbench.tasks.registry import load_task
from turbovlm_workbench.tune.allocate import Stack, allocate
from turbovlm_workbench.tune.goal import Goal
from turbovlm_workbench.tune.search import SHAPES, Search
from turbovlm_workbench.tune.trials import Part, Trial, loss_of, split_images
from turbovlm_workbench.tune.tune import Tuned, tune

IMAGES = 24


def by_operations(runs: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
    """A machine whose time is the number of operations, without noise."""
    times = {}
    for name, run in runs.items():
        with FlopCounterMode(display=False) as counter:
            run()
        times[name] = Timing((float(counter.get_total_flops()),) * 10, (0.0,) * 10, 1)
    return times


def no_gain(runs: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
    """A machine on which merging saves nothing."""
    return {name: Timing((1.0,) * 10, (0.0,) * 10, 1) for name in runs}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    build.noise(folder / "noise", IMAGES, side=160)
    build.timm_weights(folder / "tiny.safetensors")
    return folder


@pytest.fixture(scope="module")
def images(place: Path) -> ImageFolder:
    return ImageFolder.open(place / "noise")


@pytest.fixture(scope="module")
def small(place: Path) -> ImageFolder:
    return ImageFolder.open(build.noise(place / "small", 21))


@pytest.fixture(scope="module")
def embedder(place: Path) -> ImageTask[Any]:
    return load_task(str(build.clip(place / "clip")))


@pytest.fixture
def task(place: Path) -> ImageTask[Any]:
    return load_task(f"timm:{build.TINY}", place / "tiny.safetensors")


def tuned(task: ImageTask[Any], images: ImageFolder, promise: float, **more: Any) -> Tuned:
    goal = Goal(promise, more.pop("seed", 0), more.pop("keeps", ()))
    return tune(task, images, goal, BenchPlan(batch=8), **{"timer": by_operations, **more})


TOLD: dict[str, list[tuple[int, int]]] = {}
NUMBERS: list[int] = []


@pytest.fixture(scope="module")
def loose(place: Path, images: ImageFolder) -> Tuned:
    """What most tests look at: a promise that is easy to keep."""

    def progress(stage: str, done: int, total: int) -> None:
        name, _, number = stage.partition(", evaluation ")
        TOLD.setdefault(name, []).append((done, total))
        NUMBERS.extend([int(number)] if number else [])

    task = load_task(f"timm:{build.TINY}", place / "tiny.safetensors")
    return tuned(task, images, 0.5, progress=progress)


def test_it_finds_a_faster_setting_that_keeps_the_promise(
    loose: Tuned, task: ImageTask[Any], images: ImageFolder
) -> None:
    chosen = loose.chosen
    assert chosen is not None
    assert chosen is loose.closest
    assert loose.speedup is not None
    assert loose.speedup.value > 1.1
    assert chosen.loss.bound <= 0.5
    # what it says of the other images is so, and they are others
    held = split_images(IMAGES, 0)[1]
    scores = Part(task, images, held, 8, keep=False).scores(chosen.settings)
    assert loss_of(scores) == chosen.loss
    assert chosen.loss.images == 16
    assert chosen.drift > 0
    turbovlm.apply(task.model, *chosen.settings)


def test_it_needs_few_evaluations_and_writes_all_of_them_down(loose: Tuned) -> None:
    stages = [trial.stage for trial in loose.trials]
    assert list(dict.fromkeys(stages)) == [
        "collapse", "block", "shape", "alpha", "ladder", "validation"
    ]  # fmt: skip
    assert stages.count("block") == 5
    assert stages.count("shape") == len(SHAPES) == 6
    assert stages.count("alpha") == 2
    assert len(stages) < 60
    assert {trial.loss.images for trial in loose.trials if trial.stage != "validation"} == {8}


def test_the_fastest_of_the_accepted_is_chosen(loose: Tuned, task: ImageTask[Any]) -> None:
    kept = {t.settings for t in loose.trials if t.stage == "validation" and t.loss.within(0.5)}
    assert len(kept) > 1
    pixels = torch.zeros(1, 3, 160, 160)
    work = {}
    for settings in kept:
        with turbovlm.applied(task.model, *settings):
            work[settings] = turbovlm.flops(task.model, pixels).macs
    assert loose.closest is not None
    assert work[loose.closest.settings] == min(work.values())


def test_equal_seeds_find_the_same(embedder: ImageTask[Any], small: ImageFolder) -> None:
    trials = tuned(embedder, small, 0.2).trials
    assert tuned(embedder, small, 0.2).trials == trials
    assert tuned(embedder, small, 0.2, seed=1).trials != trials


def test_a_tight_promise_is_kept_by_a_gentler_setting(
    embedder: ImageTask[Any], small: ImageFolder
) -> None:
    loose = tuned(embedder, small, 0.2).closest
    assert loose is not None
    promise = loose.loss.mean / 2
    tight = tuned(embedder, small, promise).closest
    assert tight is not None
    assert tight.loss.within(promise)
    assert tight.drift < loose.drift
    with turbovlm.applied(embedder.model, Merge(r=2)):  # refuses a model that was left patched
        pass


def test_nothing_is_worth_it_where_time_is_not_saved(
    embedder: ImageTask[Any], small: ImageFolder
) -> None:
    found = tuned(embedder, small, 0.5, timer=no_gain)
    assert found.chosen is None
    assert found.closest is not None
    assert found.speedup is not None
    assert found.speedup.value == 1
    assert json.loads(json.dumps(found.to_dict()))["settings"] is None


def test_nothing_is_worth_it_where_no_setting_keeps_the_promise(
    tmp_path: Path, small: ImageFolder
) -> None:
    # its head reads all tokens, so that every merge turns an embedding by more
    found = tuned(load_task(str(build.siglip(tmp_path / "siglip"))), small, 1e-12)
    assert (found.chosen, found.closest, found.speedup) == (None, None, None)
    assert "validation" not in {trial.stage for trial in found.trials}


def collapses(trial: Trial) -> bool:
    merge = merge_of(trial.settings)
    assert merge is not None
    return merge.collapse


def test_what_nobody_reads_goes_for_free(embedder: ImageTask[Any], small: ImageFolder) -> None:
    # behind the attention of the last block only the cls token is read
    found = tuned(embedder, small, 1e-9)
    assert found.closest is not None
    merge = merge_of(found.closest.settings)
    assert merge is not None
    assert (merge.r, merge.collapse) == ((0, 0, 0), True)
    assert {collapses(trial) for trial in found.trials} == {True}


def test_nothing_goes_for_free_where_all_tokens_are_read(
    tmp_path: Path, small: ImageFolder
) -> None:
    found = tuned(load_task(str(build.siglip(tmp_path / "siglip"))), small, 0.5)
    assert found.closest is not None
    assert {collapses(trial) for trial in found.trials} == {False}
    assert "collapse" not in {trial.stage for trial in found.trials}


def test_a_result_is_plain_json(loose: Tuned) -> None:
    data = json.loads(json.dumps(loose.to_dict()))
    assert loose.chosen is not None
    assert from_plain(data["settings"]) == loose.chosen.settings
    assert data["merge_time"] == loose.merge_time
    assert data["chosen"]["loss"]["images"] == 16
    assert len(data["trials"]) == len(loose.trials)
    assert data["speedup"]["value"] == loose.speedup.value if loose.speedup else False


def test_progress_tells_every_stage(loose: Tuned) -> None:
    assert loose.chosen is not None
    assert list(TOLD) == [
        "reading images", "looking at the last block", "timing a merge", "probing blocks",
        "comparing schedules", "comparing weights", "climbing", "validating",
    ]  # fmt: skip
    assert all(done <= total for steps in TOLD.values() for done, total in steps)
    assert list(range(1, len(loose.trials) + 1)) == NUMBERS


def test_an_embedding_is_tuned_too(embedder: ImageTask[Any], small: ImageFolder) -> None:
    found = tuned(embedder, small, 0.2)
    assert found.task == "embedding"
    assert found.closest is not None
    assert found.closest.loss.mean == pytest.approx(1 - found.closest.quality["cosine"])


def slow_merges(runs: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
    """A machine whose time is the number of operations, and a tenth of the model's a merge."""
    plain = by_operations(runs)
    block = plain[UNMERGED].seconds[0] / 6
    times = {}
    for name, timing in plain.items():
        merges = name.count("@")
        times[name] = Timing((timing.seconds[0] + merges * block * 0.6,) * 10, (0.0,) * 10, 1)
    return times


def test_a_merge_is_timed_on_the_machine(
    loose: Tuned, task: ImageTask[Any], images: ImageFolder
) -> None:
    assert 0 < loose.merge_time < 0.3
    slow = Search(task, images, split_images(IMAGES, 0)[0], BenchPlan(batch=8), slow_merges)
    assert slow.stack.merge == pytest.approx(loose.merge_time + 0.6, abs=0.01)
    costs = dict.fromkeys(range(5), 1.0)
    few, many = (
        allocate(costs, 0.2, Stack(6, 401, 1, merge=time))
        for time in (slow.stack.merge, loose.merge_time)
    )
    assert sum(map(bool, few)) < sum(map(bool, many))


def test_the_limit_stands_beside_where_it_is_asked_for(place: Path, images: ImageFolder) -> None:
    task = load_task(f"timm:{build.TINY}", place / "tiny.safetensors")
    plan = BenchPlan(batch=8, rounds=2, beside=True)
    found = tune(task, images, Goal(0.5, 0, ()), plan, timer=by_operations)
    assert found.beside is not None
    assert found.closest is not None
    whole, merged = found.beside.rows
    assert merged.settings == found.closest.settings
    assert merged.limit is not None
    assert merged.gflops < whole.gflops
    assert found.to_dict()["beside"]["rows"][1]["limit"]["value"] == merged.limit.value


def test_fewer_visual_tokens_within_the_promise(place: Path, small: ImageFolder) -> None:
    keeps = (VisualTokens(keep=2), VisualTokens(keep=0.5), VisualTokens(keep=0.99))
    task = load_task(str(build.llava(place / "llava")))
    search = Search(task, small, split_images(21, 0)[0], BenchPlan(batch=8), by_operations)
    assert search.by_tokens(keeps) == [keeps[2], keeps[1], keeps[0]]
    ladders = search.ladders(Goal(0.9, keeps=keeps))
    assert [keep_of(ladder[-1]) for ladder in ladders[:2]] == [None, None]
    assert ladders[2] == [(keeps[2],), (keeps[1],), (keeps[0],)]
    # on top of the smallest share that keeps the promise, merging goes on
    kept = keep_of(ladders[3][0])
    assert ladders[3][0] == (kept,)
    assert {keep_of(settings) for settings in ladders[3]} == {kept}
    assert [merge_of(settings) for settings in ladders[3][1:]] == [
        merge_of(settings) for settings in ladders[0]
    ]
    found = tuned(task, small, 0.9, keeps=keeps)
    assert found.closest is not None
    assert keep_of(found.closest.settings) is not None
    assert found.closest.loss.within(0.9)
    assert from_plain(json.loads(json.dumps(found.to_dict()))["closest"]["settings"]) == (
        found.closest.settings
    )


def test_a_model_without_visual_tokens(embedder: ImageTask[Any], small: ImageFolder) -> None:
    with pytest.raises(UnknownArchitecture, match="no vision-language model whose prompt"):
        tuned(embedder, small, 0.2, keeps=(VisualTokens(keep=0.5),))


def test_labels_follow_their_images(task: ImageTask[Any], images: ImageFolder) -> None:
    pixels = task.pixels([images.image(index) for index in range(IMAGES)])
    labels = task.outputs(task.model, pixels).argmax(-1).tolist()
    search = Search(
        task.with_labels(tuple(labels)),
        images,
        split_images(IMAGES, 0)[0],
        BenchPlan(batch=8),
        by_operations,
    )
    # every label is the unmerged model's own answer, so accuracy is agreement
    trial = search.tried("ladder", (Merge(r=12),))
    assert trial.quality["accuracy"] == trial.quality["agreement"] == 1 - trial.loss.mean < 1


def test_validation_climbs_from_below_and_stops_at_the_first_refusal(
    task: ImageTask[Any], images: ImageFolder
) -> None:
    searched, held = split_images(IMAGES, 0)
    search = Search(task, images, searched, BenchPlan(batch=8), by_operations)
    part = Part(task, images, held, 8, keep=True)
    gentle, much = Merge(r=1), Merge(r=12)
    low, high = (loss_of(part.scores((merge,))).bound for merge in (gentle, much))
    assert low < high
    promise = (low + high) / 2

    def tested(ladder: list[Merge], rung: int) -> tuple[Merge | None, list[Merge]]:
        search.trials.clear()
        found = search.validate(part, [(merge,) for merge in ladder], rung, promise)
        return found and merge_of(found.settings), [
            merge for trial in search.trials if (merge := merge_of(trial.settings))
        ]

    same = Merge(r=1, min_tokens=2)  # as gentle as the first
    assert tested([gentle, same, much, same], 1) == (same, [gentle, same, much])
    # it begins at four fifths of the height, and goes down only where that is refused
    assert tested([gentle, gentle, gentle, same], 3) == (same, [gentle, same])
    assert tested([gentle, much, same], 2) == (gentle, [much, gentle])
    assert tested([much, much], 1) == (None, [much])
    assert tested([gentle, same], -1) == (None, [])


@pytest.mark.parametrize("promise", [0.0, 1.0, -0.1, float("nan")])
def test_promises_that_mean_nothing(
    task: ImageTask[Any], images: ImageFolder, promise: float
) -> None:
    with pytest.raises(ConfigError, match="max_loss is a share above 0 and below 1"):
        tuned(task, images, promise)


def test_too_few_images(tmp_path: Path, task: ImageTask[Any]) -> None:
    few = ImageFolder.open(build.noise(tmp_path / "few", 19))
    with pytest.raises(InputError, match="at least 20 images and got 19"):
        tuned(task, few, 0.1)


def test_outputs_that_are_no_numbers(task: ImageTask[Any], images: ImageFolder) -> None:
    with torch.no_grad():
        next(task.model.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"no numbers in torch\.float32: use --dtype fp32"):
        tuned(task, images, 0.5)
