"""Metrics against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from turbovlm.lab.grammar import Mention
from turbovlm.tasks.caption import CaptionMeter
from turbovlm.tasks.classify import ClassifyMeter
from turbovlm.tasks.embed import EmbedMeter


def logits(*rows: tuple[float, ...]) -> torch.Tensor:
    """Logits whose softmax is ``rows``, each shifted by a constant that must not matter."""
    return torch.tensor(rows).log() + 3


def test_classification() -> None:
    meter = ClassifyMeter(labels=(0, 1, 1))
    # image 0: same class, right; image 1: another class, wrong; image 2: the same, wrong
    meter.update(logits((0.5, 0.5 - 1e-6), (0.25, 0.75)), logits((0.75, 0.25), (0.75, 0.25)), 0)
    meter.update(logits((0.8, 0.2)), logits((0.8, 0.2)), 2)
    result = meter.result()
    kl = [
        0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25),
        0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25),
        0.0,
    ]
    assert result["accuracy"] == pytest.approx(1 / 3)
    assert result["agreement"] == pytest.approx(2 / 3)
    assert result["kl"] == pytest.approx(sum(kl) / 3, abs=1e-5)


def test_kl_is_from_the_unmerged_to_the_merged_model() -> None:
    meter = ClassifyMeter(labels=None)
    meter.update(logits((0.5, 0.5)), logits((0.9, 0.1)), 0)
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    backward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert meter.result()["kl"] == pytest.approx(forward, abs=1e-6)
    assert abs(forward - backward) > 0.1  # so the test tells them apart
    assert "accuracy" not in meter.result()


def test_the_model_against_itself() -> None:
    meter = ClassifyMeter(labels=(2,))
    meter.update(logits((0.1, 0.2, 0.7)), logits((0.1, 0.2, 0.7)), 0)
    assert meter.result() == {"accuracy": 1.0, "agreement": 1.0, "kl": 0.0}


def test_embeddings() -> None:
    meter = EmbedMeter()
    meter.update(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]]), 0)
    meter.update(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 4.0]]), 2)
    cosines = [1.0, math.sqrt(0.5), 0.8]
    assert meter.result()["cosine"] == pytest.approx(sum(cosines) / 3)
    assert meter.result()["lowest"] == pytest.approx(math.sqrt(0.5))


def test_captions() -> None:
    red = Mention("large", "red", "circle", "left")
    blue = Mention("small", "blue", "star", "top right")
    meter = CaptionMeter(truth=[[red], [blue]])
    first = "a large red circle at the left"
    # the second caption states four attributes, of which two (small, star) are right
    meter.update([first], [first], 0)
    meter.update(["a small blue star at the top right"], ["a small red star at the left"], 1)
    assert meter.result() == {"attributes": 6 / 8, "exact": 1 / 2}


def test_captions_without_truth() -> None:
    meter = CaptionMeter(truth=None)
    meter.update(["a dog", "a cat", "a cat"], ["a dog", "a cat", "a cat ."], 0)
    assert meter.result() == {"exact": 2 / 3}
