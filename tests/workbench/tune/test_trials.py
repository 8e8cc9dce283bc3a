from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import turbovlm
from tests.workbench import build
from turbovlm.config import Merge
from turbovlm.errors import InputError
from turbovlm_workbench.data.images import ImageFolder
from turbovlm_workbench.tasks.registry import load_task
from turbovlm_workbench.tune.bound import upper_bound
from turbovlm_workbench.tune.trials import Loss, Part, split_images


def test_the_rule_by_hand() -> None:
    # four images, one of which loses 0.04: mean 0.01; squares 3 * 0.01^2 + 0.03^2 = 0.0012 over 3
    # degrees of freedom: deviation 0.02, standard error 0.01
    loss = Loss.of([0, 0, 0, 0.04])
    assert (loss.mean, loss.error, loss.images) == pytest.approx((0.01, 0.01, 4))
    # the largest one once more: mean 0.02, variance 0.01^2 + 0.01^2, so 4 degrees of freedom, of
    # which the 95 % quantile is 9.488
    assert loss.bound == pytest.approx(0.02 * 9.488 / 4, rel=0.01)
    assert loss.within(0.048)
    assert not loss.within(0.047)
    assert Loss.of([0, 0]).within(0.001)


def test_gains_make_up_for_losses_and_are_as_uncertain() -> None:
    sparse = [0.0] * 96 + [0.2, 0.3, 0.1, 0.2]
    worse, better = upper_bound(sparse), upper_bound([*sparse[:-2], -0.1, -0.2])
    assert better < worse
    assert upper_bound([-loss for loss in sparse]) <= 0
    # the uncertainty of both, and not of one
    assert better > upper_bound([*sparse[:-2], 0.0, 0.0]) - 0.003
    # where hardly an image keeps its own, the errors of both are no longer independent
    assert upper_bound([1.0, -1.0] * 50) == pytest.approx(1.645 * 0.1005, abs=1e-4)


def coverage(draw: Callable[[random.Random], float], truth: float, number: int) -> float:
    """Share of samples of 150 images whose bound is above the true mean."""
    rng, kept = random.Random(0), 0
    for _ in range(number):
        kept += upper_bound([draw(rng) for _ in range(150)]) >= truth
    return kept / number


def test_the_bound_holds_where_few_lose_much_and_where_all_lose_a_little() -> None:
    def rare(rng: random.Random) -> float:
        return rng.random() if rng.random() < 0.05 else 0.0

    def dense(rng: random.Random) -> float:
        return rng.gammavariate(4, 0.0025)

    def labels(rng: random.Random) -> float:
        return rng.choice([1, 0, -1]) if rng.random() < 0.06 else 0

    # among 150 images seven or eight lose something; mean + 1.645 errors holds in 87 of 100
    assert 0.95 < coverage(rare, 0.025, 1000) < 0.985
    assert 0.94 < coverage(dense, 0.01, 500) < 0.99
    assert coverage(labels, 0.0, 500) > 0.94


def test_the_split_is_seeded_and_loses_nobody() -> None:
    search, held = split_images(30, seed=1)
    assert (len(search), len(held)) == (10, 20)
    assert sorted(search + held) == list(range(30))
    assert (search, held) == split_images(30, seed=1)
    assert search != split_images(30, seed=2)[0]
    assert [len(part) for part in split_images(3000, seed=0)] == [200, 2800]


def test_too_few_images() -> None:
    assert len(split_images(20, 0)[0]) == 6
    with pytest.raises(InputError, match=r"at least 20 images and got 19.*give a folder with more"):
        split_images(19, 0)


@pytest.mark.parametrize("keep", [True, False])
def test_a_part_scores_its_own_images_and_labels(tmp_path: Path, keep: bool) -> None:
    folder = ImageFolder.open(build.noise(tmp_path / "noise", 6))
    task = load_task(str(build.vit_classifier(tmp_path / "model")))
    pixels = task.pixels([folder.image(index) for index in range(6)])
    before = task.outputs(task.model, pixels)
    with turbovlm.applied(task.model, Merge(r=12)):
        after = task.outputs(task.model, pixels)
    labels = before.argmax(-1)
    task = task.with_labels(tuple(labels.tolist()))
    chosen = [4, 1, 5]  # out of order, over two batches
    scores = Part(task, folder, chosen, 2, keep=keep).scores((Merge(r=12),))
    lost = (after.argmax(-1) != labels)[chosen].double().tolist()
    assert [score["loss"] for score in scores] == lost
    kl = torch.nn.functional.kl_div(
        after.double().log_softmax(-1), before.double().softmax(-1), reduction="none"
    ).sum(-1)
    assert [score["kl"] for score in scores] == pytest.approx(kl[chosen].tolist(), rel=1e-3)
    assert min(kl.tolist()) > 1e-5  # merging changed every output
    # and the model is as it was
    assert torch.equal(task.outputs(task.model, pixels), before)
