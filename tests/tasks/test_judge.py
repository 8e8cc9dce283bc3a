from __future__ import annotations

from pathlib import Path

import pytest
import torch

import turbovlm
from tests.tasks import build
from turbovlm.config import Merge
from turbovlm.errors import InputError
from turbovlm.tasks.images import ImageFolder
from turbovlm.tasks.models import load, with_labels
from turbovlm.tasks.tuning.judge import Loss, Part, split


def test_the_rule_by_hand() -> None:
    # four images, one of which loses 0.04: mean 0.01; squares 3 * 0.01^2 + 0.03^2 = 0.0012 over 3
    # degrees of freedom: deviation 0.02, standard error 0.01
    loss = Loss.of([0, 0, 0, 0.04])
    assert (loss.mean, loss.error, loss.images) == pytest.approx((0.01, 0.01, 4))
    assert loss.bound == pytest.approx(0.01 + 1.645 * 0.01)
    assert loss.within(0.0265)
    assert not loss.within(0.0264)
    assert Loss.of([0, 0]).within(0.001)


def test_the_split_is_seeded_and_loses_nobody() -> None:
    search, held = split(30, seed=1)
    assert (len(search), len(held)) == (10, 20)
    assert sorted(search + held) == list(range(30))
    assert (search, held) == split(30, seed=1)
    assert search != split(30, seed=2)[0]
    assert [len(part) for part in split(3000, seed=0)] == [200, 2800]


def test_too_few_images() -> None:
    assert len(split(20, 0)[0]) == 6
    with pytest.raises(InputError, match=r"at least 20 images and got 19.*give a folder with more"):
        split(19, 0)


@pytest.mark.parametrize("keep", [True, False])
def test_a_part_scores_its_own_images_and_labels(tmp_path: Path, keep: bool) -> None:
    folder = ImageFolder.open(build.noise(tmp_path / "noise", 6))
    task = load(str(build.vit_classifier(tmp_path / "model")))
    pixels = task.pixels([folder.image(index) for index in range(6)])
    before = task.outputs(task.model, pixels)
    with turbovlm.applied(task.model, Merge(r=12)):
        after = task.outputs(task.model, pixels)
    labels = before.argmax(-1)
    task = with_labels(task, tuple(labels.tolist()))
    chosen = [4, 1, 5]  # out of order, over two batches
    scores = Part(task, folder, chosen, 2, keep=keep).scores(Merge(r=12))
    lost = (after.argmax(-1) != labels)[chosen].double().tolist()
    assert [score["loss"] for score in scores] == lost
    kl = torch.nn.functional.kl_div(
        after.double().log_softmax(-1), before.double().softmax(-1), reduction="none"
    ).sum(-1)
    assert [score["kl"] for score in scores] == pytest.approx(kl[chosen].tolist(), rel=1e-3)
    assert min(kl.tolist()) > 1e-5  # merging changed every output
    # and the model is as it was
    assert torch.equal(task.outputs(task.model, pixels), before)
