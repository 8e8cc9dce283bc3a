"""Runs of an evaluation: merging, broken images, kills, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import turbovlm
from tests.workbench import build
from turbovlm.config import Merge
from turbovlm.errors import AlreadyApplied, ConfigError, InputError
from turbovlm_workbench.data.images import find_images
from turbovlm_workbench.load.models import load_model
from turbovlm_workbench.run.processes import Processes
from turbovlm_workbench.run.result import difference
from turbovlm_workbench.run.runner import RunPlan, run_task
from turbovlm_workbench.tasks.agreement import Agreement

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    build.photos(folder / "photos", 7)
    build.timm_weights(folder / "tiny.safetensors")
    return folder


def evaluation(place: Path, photos: str = "photos") -> Agreement:
    loaded = load_model(f"timm:{build.TINY}", place / "tiny.safetensors")
    return Agreement(loaded, find_images(place / photos), place / photos)


def plan(out: Path, **options: Any) -> RunPlan:
    default = {"batch": 2, "dtype": torch.float32, "workers": 0, "settings": {"dtype": "fp32"}}
    return RunPlan(out, Processes(0, 1, CPU), **{**default, **options})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_leaves_predictions_scores_and_a_result(place: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    todo = evaluation(place)
    asked = plan(tmp_path / "out", command="turbovlm eval x")
    done = run_task(todo, (Merge(r=8),), asked, lambda *step: told.append(step))
    assert done is not None
    predictions = lines(tmp_path / "out" / "predictions.jsonl")
    scores = lines(tmp_path / "out" / "scores.jsonl")
    assert [p["id"] for p in predictions] == todo.fingerprint() == [s["id"] for s in scores]
    kl = [s["kl"] for s in scores]
    assert all(value > 0 for value in kl), "merging changed nothing"
    assert done["metrics"]["kl"] == pytest.approx(sum(kl) / 7)
    low, high = done["intervals"]["kl"]
    assert min(kl) <= low < done["metrics"]["kl"] < high <= max(kl)
    assert done["merge"] == {"kind": "merge", "r": 8}
    assert done["command"] == "turbovlm eval x"
    assert "command" not in done["settings"]  # another command may go on with it
    assert (done["examples"], done["broken"]) == (7, {})
    assert done["examples_per_second"] > 0
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(
        json.dumps(done)
    )
    assert told == [("predictions", n, 7) for n in (0, 2, 4, 6, 7)]
    with pytest.raises(turbovlm.TurboError):  # neither model is left merged
        turbovlm.remove(todo.patched)


def test_without_merging_both_agree(place: Path, tmp_path: Path) -> None:
    done = run_task(evaluation(place), (), plan(tmp_path / "out"))
    assert done is not None
    assert done["metrics"] == {"agreement": 1.0, "kl": 0.0, "loss": 0.0}


def test_a_broken_image_is_named_and_counted(place: Path, tmp_path: Path) -> None:
    build.photos(place / "some", 3)
    broken = place / "some" / "photo0.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    done = run_task(evaluation(place, "some"), (Merge(r=4),), plan(tmp_path / "out"))
    assert done is not None
    assert list(done["broken"]) == ["photo0.jpg"]
    assert "photo0.jpg" in done["broken"]["photo0.jpg"]
    assert [s["id"] for s in lines(tmp_path / "out" / "scores.jsonl")] == [
        "photo2.jpg",
        "sub/photo1.jpg",
    ]
    broken.write_bytes(whole)  # repaired: the next run takes it in
    done = run_task(evaluation(place, "some"), (Merge(r=4),), plan(tmp_path / "out"))
    assert done is not None
    assert done["broken"] == {}
    assert len(lines(tmp_path / "out" / "scores.jsonl")) == 3


def test_no_readable_image_at_all_is_an_error(place: Path, tmp_path: Path) -> None:
    (place / "none").mkdir()
    (place / "none" / "x.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"no image of the 1 examples can be read: .*x\.jpg"):
        run_task(evaluation(place, "none"), (), plan(tmp_path / "out"))


KILLED = """
import os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from tests.workbench.run.test_run import evaluation, plan
from turbovlm.config import Merge
from turbovlm_workbench.run.runner import run_task

def step(stage, done, total):
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)

run_task(evaluation(Path({place!r})), (Merge(r=8),), plan(Path({out!r})), step)
"""


def test_a_killed_run_goes_on_where_it_was(place: Path, tmp_path: Path) -> None:
    whole = run_task(evaluation(place), (Merge(r=8),), plan(tmp_path / "whole"))
    out, root = tmp_path / "out", Path(__file__).parents[4]
    code = KILLED.format(root=str(root), place=str(place), out=str(out))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert len(lines(out / "predictions.0.part")) == 4
    told: list[int] = []
    again = run_task(
        evaluation(place), (Merge(r=8),), plan(out), lambda _, done, __: told.append(done)
    )
    assert told == [4, 6, 7]
    assert whole is not None
    assert again is not None
    assert again["metrics"] == whole["metrics"]
    assert again["intervals"] == whole["intervals"]
    for name in ("predictions.jsonl", "scores.jsonl"):
        assert lines(out / name) == lines(tmp_path / "whole" / name)


@pytest.mark.parametrize(
    ("merge", "settings", "named"),
    [(Merge(r=4), {"dtype": "fp32"}, "merge"), (Merge(r=8), {"dtype": "bf16"}, "dtype")],
)
def test_another_run_does_not_mix_in(
    place: Path, tmp_path: Path, merge: Merge, settings: dict[str, str], named: str
) -> None:
    run_task(evaluation(place), (Merge(r=8),), plan(tmp_path / "out"))
    before = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    with pytest.raises(InputError, match=f"another {named}"):
        run_task(evaluation(place), (merge,), plan(tmp_path / "out", settings=settings))
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == before


def test_a_setting_that_does_not_fit_writes_nothing(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        run_task(evaluation(place), (Merge(r=(1, 2)),), plan(tmp_path / "out"))
    todo = evaluation(place)
    turbovlm.apply(todo.patched, Merge(r=1))
    with pytest.raises(AlreadyApplied):
        run_task(todo, (Merge(r=2),), plan(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_workers_load_the_same_images(place: Path, tmp_path: Path) -> None:
    one = run_task(evaluation(place), (Merge(r=8),), plan(tmp_path / "one"))
    two = run_task(evaluation(place), (Merge(r=8),), plan(tmp_path / "two", workers=2))
    assert one is not None
    assert two is not None
    assert one["metrics"] == two["metrics"]


def test_a_process_takes_its_share_alone(place: Path, tmp_path: Path) -> None:
    todo = evaluation(place)
    second = RunPlan(tmp_path, Processes(1, 2, CPU), 2, torch.float32, 0, {})
    assert run_task(todo, (Merge(r=8),), second) is None  # it does not report
    shared = [line["id"] for line in lines(tmp_path / "predictions.1.part")]
    assert shared == todo.fingerprint()[1::2]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.1.part"]


def test_a_difference_is_that_of_the_same_examples(tmp_path: Path) -> None:
    ours = {"a": {"right": 1.0}, "b": {"right": 1.0}, "c": {"right": 0.0}, "d": {"right": 1.0}}
    theirs = {"b": {"right": 0.0}, "c": {"right": 0.0}, "a": {"right": 1.0}, "e": {"right": 0.0}}
    for name, scores in (("ours", ours), ("theirs", theirs)):
        rows = [json.dumps({"id": key, **row}) for key, row in scores.items()]
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    mean, low, high = difference(tmp_path / "ours", tmp_path / "theirs")["right"]
    assert mean == pytest.approx(1 / 3)  # of a, b, c, that of b alone is not 0
    assert (low, high) == (0.0, 1.0)
    (tmp_path / "theirs").write_text(json.dumps({"id": "z", "right": 1.0}) + "\n")
    with pytest.raises(InputError, match="scores none of these examples"):
        difference(tmp_path / "ours", tmp_path / "theirs")


def test_two_processes_share_the_work(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    alone = run_task(evaluation(place), (Merge(r=8),), plan(tmp_path / "alone"))
    out = tmp_path / "out"
    # what `accelerate launch` runs for several processes; alone it starts only one on a CPU
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = ["-m", "turbovlm", "eval", "agreement", "--model", f"timm:{build.TINY}"]
    words += ["--weights", place / "tiny.safetensors", "--data", place / "photos", "-r", "8"]
    words += ["--out", out, "--batch", "2", "--json", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *map(str, words)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert alone is not None
    result = json.loads(done.stdout)  # the first process alone speaks
    assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert [p["id"] for p in lines(out / "predictions.jsonl")] == [
        p["id"] for p in lines(tmp_path / "alone" / "predictions.jsonl")
    ]
    assert not list(out.glob("*.part"))
