"""Criteria of the benchmark on small cases, and its shortcut against the library itself."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import turbovlm

pytest.importorskip("transformers")
pytest.importorskip("pycocoevalcap")

FOLDER = Path(__file__).parents[2] / "benchmarks" / "vlm"


@pytest.fixture
def criteria(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("criteria")


@pytest.fixture
def bench(criteria: ModuleType) -> ModuleType:
    return importlib.import_module("answers")


@pytest.fixture
def tower(criteria: ModuleType) -> ModuleType:
    return importlib.import_module("tower")


@pytest.fixture
def lab(bench: ModuleType) -> Any:
    return bench.Lab("test", 500, 4)


def seen(criteria: ModuleType, features: torch.Tensor, attended: list[float]) -> Any:
    count = features.shape[1]
    place = torch.stack([torch.zeros(count), torch.zeros(count), torch.arange(count) / count], 1)
    return criteria.Seen(features, place, torch.tensor([attended]), features)


def test_visionzip_keeps_the_attended_and_averages_the_rest(
    criteria: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria, "DOMINANT", 0.5)
    features = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.2], [8.0, 8.0]]])
    given = seen(criteria, features, [0.5, 0.1, 0.1, 0.1, 0.4])
    found = criteria.visionzip(given, 4)
    # 0 and 4 are attended; of 1, 2 and 3 the first two hold context, and 3 is like 1
    assert found.at.tolist() == [[0, 1, 2, 4]]
    assert found.features[0].tolist() == [[9, 9], [2, pytest.approx(0.1)], [0, 1], [8, 8]]


def test_pooling_averages_cells(criteria: ModuleType) -> None:
    features = torch.arange(16.0).view(1, 16, 1)
    found = criteria.pooled(seen(criteria, features, [0.0] * 16), 3)
    assert found.features.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert found.at.tolist() == [[5, 7, 13, 15]]


@pytest.mark.parametrize(("keep", "side"), [(1, 1), (9, 3), (10, 4), (98, 10)])
def test_squares_hold_at_least_as_many(criteria: ModuleType, keep: int, side: int) -> None:
    assert criteria.coarse_side(keep) == side


@pytest.mark.parametrize("keep", [98, 49, 22, 12])
def test_towers_merge_to_the_count(tower: ModuleType, lab: Any, keep: int) -> None:
    r = tower.removals(196, keep, 8)
    assert sum(r) == 196 - keep
    found = tower.in_tower(lab, keep)
    assert found.at.shape == (4, keep)
    assert found.features.shape == (4, keep, 160)


def test_the_shortcut_is_the_library(criteria: ModuleType, lab: Any) -> None:
    """Answers and captions from selected features, against generate() of a patched model."""
    tokens = lab.see()
    base = lab.answers(criteria.whole(tokens))
    kept = lab.answers(criteria.library(tokens, 22))
    assert kept.kl(base).min() > 0, "dropping tokens changed nothing"
    assert base.kl(base).abs().max() == 0
    call: Any = lab.processor
    images = [scene.image for scene in lab.scenes]
    with turbovlm.applied(lab.model, turbovlm.VisualTokens(keep=22)), torch.no_grad():
        for number in range(3):
            told = [some[number] for some in lab.told]
            text = ["<image>" + one.prompt for one in told]
            made = call(images=images, text=text, padding=True, return_tensors="pt")
            ids = lab.model.generate(**made, max_new_tokens=47, do_sample=False)
            ids = ids[:, made["input_ids"].shape[1] :]
            said = lab.processor.batch_decode(ids, skip_special_tokens=True)
            right = [
                a.strip().replace(" ,", ",") == b.answer for a, b in zip(said, told, strict=True)
            ]
            assert right == [pairs[number][1] for pairs in kept.right]
            if number == 0:
                assert [s.strip() for s in said] == [s.strip() for s in kept.captions]
