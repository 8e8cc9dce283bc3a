"""Evaluation of generation: pictures on disk, kills, metrics against their definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import turbovlm
from tests.workbench import build
from tests.workbench.generation.make import BLUE, RED, SIDE, STEPS, stable_diffusion
from tests.workbench.run.test_run import lines
from turbovlm.config import MergeRestore
from turbovlm.errors import ConfigError, InputError, NotApplied
from turbovlm_workbench.generation.draw import Drawing
from turbovlm_workbench.generation.fid import load_fid
from turbovlm_workbench.generation.pipeline import as_loaded, load_pipeline
from turbovlm_workbench.load.by_task import load_matching
from turbovlm_workbench.run.processes import Processes
from turbovlm_workbench.run.runner import RunPlan, run_task
from turbovlm_workbench.tasks.generation import Generation, PictureScoring, Reference, numbered

CPU = torch.device("cpu")
PROMPTS = [RED, BLUE, f"{RED}, {BLUE}", RED, BLUE]
HALF = MergeRestore(ratio=0.5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    stable_diffusion(folder / "sd")
    build.photos(folder / "photos", 4)
    return folder


def drawing(place: Path, out: Path, seed: int = 0, **scoring: Any) -> Generation:
    pipe = load_pipeline(str(place / "sd"))
    return Generation(
        as_loaded(pipe, "small"),
        numbered(PROMPTS, seed),
        pipe=pipe,
        drawing=Drawing(steps=STEPS),
        out=out,
        scoring=PictureScoring(**scoring),
    )


def plan(out: Path) -> RunPlan:
    return RunPlan(out, Processes(0, 1, CPU), 2, torch.float32, 0, {"steps": STEPS})


@pytest.fixture(scope="module")
def plain(place: Path) -> Path:
    """A finished run without merging."""
    out = place / "plain"
    assert run_task(drawing(place, out), (), plan(out)) is not None
    return out


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=float)


def test_a_run_leaves_pictures_and_their_records(place: Path, plain: Path) -> None:
    records = lines(plain / "pictures.jsonl")
    assert [(r["prompt"], r["seed"]) for r in records] == list(zip(PROMPTS, range(5), strict=True))
    pictures = [picture(plain / record["file"]) for record in records]
    assert {p.shape for p in pictures} == {(SIDE, SIDE, 3)}
    assert np.abs(pictures[0] - pictures[3]).mean() > 5  # the same prompt, other noise
    done = json.loads((plain / "result.json").read_text())
    seconds = sorted(record["seconds"] for record in records)
    assert done["metrics"] == {"images_per_second": pytest.approx(1 / seconds[2])}


def test_metrics_against_another_run(place: Path, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    fid = load_fid("lab:captioner", None, CPU)
    scorer = load_matching("lab:retrieval")
    reference = Reference.open(plain)
    todo = drawing(place, out, reference=reference, fid=fid, clip=scorer)
    done = run_task(todo, (HALF,), plan(out))
    assert done is not None
    assert done["merge"] == HALF.to_dict()
    keys = {"fid", "clip", "difference", "psnr", "images_per_second"}
    assert done["metrics"].keys() == keys == {m.key for m in todo.measures}
    files = [f"pictures/{index:06d}.png" for index in range(5)]
    gaps = [picture(out / file) - picture(plain / file) for file in files]
    assert min(np.abs(g).mean() for g in gaps) > 0.5, "merging changed nothing"
    found = done["metrics"]
    assert found["difference"] == pytest.approx(np.mean([np.abs(g).mean() for g in gaps]))
    error = np.mean([np.square(g).mean() for g in gaps])
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / error))
    assert found["fid"] == pytest.approx(
        fid.distance([out / file for file in files], [plain / file for file in files])
    )
    with torch.inference_mode():
        pixels = scorer.prepare([Image.open(out / file).convert("RGB") for file in files])
        cosines = scorer.similarity(scorer.see(pixels), scorer.read(PROMPTS)).diagonal()
    assert found["clip"] == pytest.approx(100 * cosines.clamp(min=0).mean().item(), abs=1e-3)
    assert 0 < found["clip"] < 100
    scores = lines(out / "scores.jsonl")
    assert [set(row) for row in scores] == [{"id", "clip", "difference"}] * 5
    assert done["features"].startswith("lab:captioner, ")
    with pytest.raises(NotApplied):
        turbovlm.remove(todo.pipe)


def test_pictures_are_drawn_once_and_scored_anew(place: Path, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    run_task(drawing(place, out), (HALF,), plan(out))
    before = {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    told: list[tuple[str, int, int]] = []
    fid = load_fid("lab:captioner", None, CPU)
    reference = Reference.open(place / "photos")
    again = drawing(
        place, out, reference=reference, fid=fid, progress=lambda *step: told.append(step)
    )
    done = run_task(again, (HALF,), plan(out), lambda *step: told.append(step))
    assert done is not None
    assert set(done["metrics"]) == {"fid", "images_per_second"}
    assert done["metrics"]["fid"] > 0.1
    assert ("pictures", 5, 5) in told
    assert ("features", 0, 9) in told
    assert before == {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}


def test_a_picture_that_was_touched_is_not_scored(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_task(drawing(place, out), (HALF,), plan(out))
    second = out / "pictures" / "000001.png"
    kept = second.read_bytes()
    for change in (lambda: second.write_bytes(kept + b" "), second.unlink):
        change()
        with pytest.raises(InputError, match=r"000001.png is gone or no longer the picture"):
            run_task(drawing(place, out), (HALF,), plan(out))
    second.write_bytes(kept)
    assert run_task(drawing(place, out), (HALF,), plan(out)) is not None


def test_an_interrupted_run_goes_on_where_it_was(place: Path, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_task(drawing(place, out), (), plan(out), stop)
    assert len(list((out / "pictures").iterdir())) == 2
    with pytest.raises(InputError, match="is no finished run of eval generation"):
        Reference.open(out)
    told: list[int] = []
    run_task(drawing(place, out), (), plan(out), lambda _, done, __: told.append(done))
    assert told == [2, 4, 5]
    for record in lines(plain / "pictures.jsonl"):
        assert np.array_equal(picture(out / record["file"]), picture(plain / record["file"]))


def test_runs_that_do_not_fit(place: Path, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a run with another merge"):
        run_task(drawing(place, plain), (HALF,), plan(plain))
    with pytest.raises(InputError, match="holds a run with another data"):
        run_task(drawing(place, plain, seed=1), (), plan(plain))
    other = drawing(place, tmp_path / "out", seed=100, reference=Reference.open(plain))
    with pytest.raises(InputError, match="drew none of these prompts with the same noise"):
        run_task(other, (), plan(tmp_path / "out"))
    with pytest.raises(InputError, match="nowhere is no folder"):
        Reference.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--seed must be in"):
        drawing(place, tmp_path / "seed", seed=-1)
