"""Runs that resume or are compared: with the same weights, images and data, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.workbench import build
from tests.workbench.load import test_matching
from tests.workbench.run.test_run import evaluation, lines, plan
from turbovlm.config import Merge
from turbovlm.errors import InputError
from turbovlm_workbench.draws import DRAWS
from turbovlm_workbench.load.models import load_model
from turbovlm_workbench.run.identity import model_digest
from turbovlm_workbench.run.runner import run_task
from turbovlm_workbench.tasks.registry import build_task
from turbovlm_workbench.tasks.request import Request


@pytest.fixture
def place(tmp_path: Path) -> Path:
    build.photos(tmp_path / "photos", 3)
    build.timm_weights(tmp_path / "tiny.safetensors")
    return tmp_path


def retouch(path: Path) -> None:
    """Another picture in the same file."""
    with Image.open(path) as image:
        other = image.rotate(90)
    other.save(path)


def bend(place: Path) -> None:
    """One number of the checkpoint, in place."""
    state = load_file(place / "tiny.safetensors")
    state["blocks.2.mlp.fc1.weight"].view(-1)[777] += 0.5
    save_file(state, place / "tiny.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bend, "a run with another weights"),
        (lambda place: retouch(place / "photos" / "photo2.jpg"), "photo2.jpg from another"),
        (lambda place: (place / "photos" / "photo2.jpg").unlink(), "another data"),
    ],
)
def test_a_run_goes_on_only_with_what_it_read(
    place: Path, change: Callable[[Path], None], message: str
) -> None:
    first = run_task(evaluation(place), (Merge(r=8),), plan(place / "out"))
    again = run_task(evaluation(place), (Merge(r=8),), plan(place / "out"))
    assert first is not None
    assert again is not None
    assert again["metrics"] == first["metrics"]
    before = (place / "out" / "predictions.jsonl").read_bytes()
    change(place)
    with pytest.raises(InputError, match=message):
        run_task(evaluation(place), (Merge(r=8),), plan(place / "out"))
    assert (place / "out" / "predictions.jsonl").read_bytes() == before


def test_files_that_only_moved_or_were_touched_are_the_same(place: Path) -> None:
    run_task(evaluation(place), (Merge(r=8),), plan(place / "out"))
    shutil.copytree(place / "photos", place / "moved")
    told: list[int] = []
    run_task(
        evaluation(place, "moved"), (Merge(r=8),), plan(place / "out"), lambda *s: told.append(s[1])
    )
    assert told == [3], "predicted again"


def test_another_folder_of_equal_names_is_another_run(place: Path) -> None:
    run_task(evaluation(place), (Merge(r=8),), plan(place / "out"))
    shutil.copytree(place / "photos", place / "other")
    retouch(place / "other" / "photo0.jpg")
    with pytest.raises(InputError, match=r"other/photo0\.jpg"):
        run_task(evaluation(place, "other"), (Merge(r=8),), plan(place / "out"))


def test_the_digest_of_a_model_is_its_content(place: Path) -> None:
    def digest() -> str:
        return model_digest(evaluation(place).parts)

    first = digest()
    (place / "tiny.safetensors").rename(place / "moved")
    shutil.copy(place / "moved", place / "tiny.safetensors")
    assert digest() == first
    bend(place)
    assert digest() != first


def test_the_digest_knows_preprocessing_and_words(tmp_path: Path) -> None:
    folder = build.vit_classifier(tmp_path / "vit")
    settings = folder / "preprocessor_config.json"
    loaded = load_model(str(folder))
    parts: dict[str, Any] = {"model": loaded.model, "prepare": loaded.prepare}
    first = model_digest(parts)
    changed = {**json.loads(settings.read_text()), "image_mean": [0.1, 0.5, 0.5]}
    settings.write_text(json.dumps(changed))
    again = load_model(str(folder))
    assert model_digest({"model": again.model, "prepare": again.prepare}) != first
    assert model_digest({"model": again.model, "prepare": loaded.prepare}) == first


def test_the_digest_knows_how_words_are_cut() -> None:
    lower, upper = (SimpleTokenizer(clean=clean) for clean in ("lower", "whitespace"))
    first = model_digest({"tokenizer": lower})
    assert model_digest({"tokenizer": SimpleTokenizer(clean="lower")}) == first
    assert model_digest({"tokenizer": upper}) != first


def test_a_repaired_picture_ranks_all_anew(tmp_path: Path) -> None:
    images = build.noise(tmp_path / "images", 12)
    rows = [{"image": f"noise{n}.png", "captions": [f"word{n} word1"]} for n in range(12)]
    data = tmp_path / "captions.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    model = test_matching.dual(tmp_path / "model", "clip")

    def ranked(out: str) -> dict[str, list[str]]:
        task = build_task("retrieval", Request(str(model), data, images))
        run_task(task, (), plan(tmp_path / out))
        return {r["id"]: r["ranked"] for r in lines(tmp_path / out / "predictions.jsonl")}

    whole = (images / "noise5.png").read_bytes()
    (images / "noise5.png").write_bytes(whole[:60])
    without = ranked("out")
    assert len(without) == 22
    (images / "noise5.png").write_bytes(whole)
    repaired = ranked("out")
    assert repaired == ranked("fresh")
    assert any(repaired[query] != ranks for query, ranks in without.items()), "nothing to see"


def test_another_run_is_checked_before_this_one_begins(place: Path) -> None:
    run_task(evaluation(place), (), plan(place / "plain"))
    shutil.copytree(place / "photos", place / "fewer")
    (place / "fewer" / "photo0.jpg").unlink()
    with pytest.raises(InputError, match="with another data"):
        run_task(
            evaluation(place, "fewer"), (Merge(r=8),), plan(place / "one", against=place / "plain")
        )
    with pytest.raises(InputError, match="give the --out of a finished run"):
        run_task(evaluation(place), (Merge(r=8),), plan(place / "one", against=place / "photos"))
    assert not (place / "one").exists()
    retouch(place / "photos" / "photo0.jpg")
    with pytest.raises(InputError, match=r"read another image for photo0\.jpg"):
        run_task(evaluation(place), (Merge(r=8),), plan(place / "two", against=place / "plain"))


def test_random_is_the_mean_of_several_draws(place: Path) -> None:
    merge = Merge(r=8, method="random")
    done = run_task(evaluation(place), (merge,), plan(place / "out"))
    assert done is not None
    assert done["draws"] == DRAWS
    one_by_one = [lines(place / "out" / f"draw{n}" / "predictions.jsonl") for n in range(1, 6)]
    kls = [[record["scores"]["kl"] for record in draw] for draw in one_by_one]
    assert len({tuple(kl) for kl in kls}) == DRAWS, "the draws are alike"
    assert done["metrics"]["kl"] == pytest.approx(sum(map(sum, kls)) / 15)
    first = lines(place / "out" / "scores.jsonl")[0]
    assert first["kl"] == pytest.approx(sum(kl[0] for kl in kls) / DRAWS)
    again = run_task(evaluation(place), (merge,), plan(place / "out"))
    assert again is not None
    assert again["metrics"] == done["metrics"]
    fixed = run_task(evaluation(place), (Merge(r=8),), plan(place / "fixed"))
    assert fixed is not None
    assert fixed["draws"] == 1


def test_loading_ahead_keeps_the_order_and_names_broken_pictures(place: Path) -> None:
    (place / "photos" / "a.png").write_bytes(b"none")
    done = run_task(evaluation(place), (Merge(r=8),), plan(place / "out", workers=3, batch=3))
    assert done is not None
    assert list(done["broken"]) == ["a.png"]
    read = lines(place / "out" / "predictions.jsonl")
    assert [record["id"] for record in read] == evaluation(place).fingerprint()
    alone = run_task(evaluation(place), (Merge(r=8),), plan(place / "alone", batch=3))
    assert alone is not None
    assert torch.tensor(alone["metrics"]["kl"]) == done["metrics"]["kl"]
