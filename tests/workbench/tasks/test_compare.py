"""Metrics against values worked by hand."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from turbovlm_lab.grammar import Mention
from turbovlm_workbench.demo.captioner import precision
from turbovlm_workbench.load.loaded import Captioner, Classifier, Embedder
from turbovlm_workbench.metrics.measure import Measure, summarize
from turbovlm_workbench.tasks.captioning import Captioning, word_f1
from turbovlm_workbench.tasks.classification import Classification
from turbovlm_workbench.tasks.embedding import Embedding

NO_MODEL: Any = None


def classify(labels: tuple[int, ...] | None) -> Classification:
    return Classification(Classifier(NO_MODEL, NO_MODEL, "model"), labels=labels)


def caption(objects: Any) -> Captioning:
    truth = None if objects is None else [partial(precision, shown) for shown in objects]
    return Captioning(Captioner(NO_MODEL, NO_MODEL, "model", decode=lambda ids: []), truth=truth)


def logits(*rows: tuple[float, ...]) -> torch.Tensor:
    """Logits whose softmax is ``rows``, each shifted by a constant that must not matter."""
    return torch.tensor(rows).log() + 3


def test_classification() -> None:
    task = classify((0, 1, 1))
    # image 0: same class, right; image 1: another class, wrong; image 2: the same, wrong
    scores = task.compare(
        logits((0.5, 0.5 - 1e-6), (0.25, 0.75)), logits((0.75, 0.25), (0.75, 0.25)), 0
    )
    scores += task.compare(logits((0.8, 0.2)), logits((0.8, 0.2)), 2)
    kl = [
        0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25),
        0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25),
        0.0,
    ]
    assert [score["accuracy"] for score in scores] == [1, 0, 0]
    assert [score["agreement"] for score in scores] == [1, 0, 1]
    assert [score["loss"] for score in scores] == [0, 1, 0]  # the unmerged model had image 1 right
    assert [score["kl"] for score in scores] == pytest.approx(kl, abs=1e-5)
    result = summarize(task.comparisons, scores)
    assert result == pytest.approx(
        {"accuracy": 1 / 3, "agreement": 2 / 3, "kl": sum(kl) / 3}, abs=1e-5
    )


def test_a_truth_can_be_gained() -> None:
    (score,) = classify((1,)).compare(logits((0.6, 0.4)), logits((0.4, 0.6)), 0)
    assert score["loss"] == -1


def test_without_labels_the_unmerged_model_judges() -> None:
    before = logits((0.40, 0.38, 0.22), (0.9, 0.06, 0.04), (0.1, 0.2, 0.7))
    after = logits((0.38, 0.40, 0.22), (0.1, 0.1, 0.8), (0.3, 0.3, 0.4))
    task = classify(None)
    losses = [score["loss"] for score in task.compare(before, after, 0)]
    # a toss-up, a certainty given up, and agreement, however far the rest moved
    assert losses == pytest.approx([1 - 0.38 / 0.40, 1 - 0.04 / 0.9, 0], abs=1e-6)
    assert losses[2] == 0
    assert task.loss.title != classify((0,)).loss.title


def test_kl_is_from_the_unmerged_to_the_merged_model() -> None:
    (score,) = classify(None).compare(logits((0.5, 0.5)), logits((0.9, 0.1)), 0)
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    backward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert score["kl"] == pytest.approx(forward, abs=1e-6)
    assert abs(forward - backward) > 0.1  # so the test tells them apart
    assert "accuracy" not in score


def test_the_model_against_itself() -> None:
    same = logits((0.1, 0.2, 0.7))
    assert classify((2,)).compare(same, same, 0) == [
        {"accuracy": 1.0, "agreement": 1.0, "kl": 0.0, "loss": 0.0}
    ]
    assert classify(None).compare(same, same, 0) == [{"agreement": 1.0, "kl": 0.0, "loss": 0.0}]


def test_embeddings() -> None:
    task = Embedding(Embedder(NO_MODEL, NO_MODEL, "model"))
    scores = task.compare(
        torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]]), 0
    )
    scores += task.compare(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 4.0]]), 2)
    cosines = [1.0, math.sqrt(0.5), 0.8]
    result = summarize(task.comparisons, scores)
    assert result == pytest.approx({"cosine": sum(cosines) / 3, "lowest": math.sqrt(0.5)})
    assert [score["loss"] for score in scores] == pytest.approx([1 - c for c in cosines])


def test_captions() -> None:
    red = Mention("large", "red", "circle", "left")
    blue = Mention("small", "blue", "star", "top right")
    task = caption([[red], [blue]])
    first = "a large red circle at the left"
    # the second caption states four attributes, of which two (small, star) are right
    scores = task.compare([first], [first], 0)
    scores += task.compare(
        ["a small blue star at the top right"], ["a small red star at the left"], 1
    )
    assert scores == [
        {"attributes": 1.0, "exact": 1.0, "reworded": 0.0, "loss": 0.0},
        # of 8 and 7 words five are common: a, small, star, at, the
        {"attributes": 0.5, "exact": 0.0, "reworded": pytest.approx(1 - 10 / 15), "loss": 0.5},
    ]
    assert summarize(task.comparisons, scores) == {"attributes": 6 / 8, "exact": 1 / 2}


def test_captions_without_truth() -> None:
    task = caption(None)
    scores = task.compare(["a dog", "a cat", "a cat"], ["a dog", "a cat", "a cat ."], 0)
    assert summarize(task.comparisons, scores) == {"exact": 2 / 3}
    # of 2 and 3 words two are common
    assert [score["loss"] for score in scores] == pytest.approx([0, 0, 1 - 2 * 2 / 5])


def test_words_count_as_often_as_they_occur() -> None:
    assert word_f1("a dog and a cat", "A cat") == pytest.approx(2 * 2 / 7)
    assert word_f1("a dog", "one cat") == 0
    assert word_f1("", "") == 1


def test_a_measure_says_how_images_become_one_number() -> None:
    measures = (Measure("x", "x", "mean"), Measure("y", "y", "lowest", reduce="min"))
    scores = [{"x": 1.0, "y": 3.0, "loss": 9.0}, {"x": 2.0, "y": -1.0, "loss": 9.0}]
    assert summarize(measures, scores) == {"x": 1.5, "y": -1.0}
