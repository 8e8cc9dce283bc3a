"""Whole jobs on a real Ray, by the command line: killed, gone on with, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.workbench.cli.test_commands import turbovlm_runs
from tests.workbench.scale.make import MODEL, parquet, scene_files
from turbovlm_workbench.cli.app import run_command
from turbovlm_workbench.scale.pipeline import Pool, ray_running

pytestmark = pytest.mark.slow
PICTURES, PART = 24, 4


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """One Ray for all jobs of this file."""
    with ray_running(Pool(workers=2)):
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    scene_files(folder / "scenes", PICTURES)
    (folder / "scenes" / "bad.png").write_bytes(b"no picture")
    return folder


def words(place: Path, out: str, *more: object) -> list[object]:
    job = ["run", "embed", MODEL, "--data", place / "scenes", "--out", place / out]
    return [*job, "--part", PART, "--batch", 2, "--r", 8, *more]


def embeddings(out: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(out / "parts")
    ids = table["id"].to_pylist()
    assert len(ids) == len(set(ids)), "a picture is there twice"
    return dict(zip(ids, map(np.array, table["embedding"].to_pylist()), strict=True))


def below(process: int) -> list[int]:
    """The processes that a process started, and those that they did."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *below(child)]
    return found


def ray_workers() -> list[int]:
    """The processes of this test's workers with a model."""
    named = ((pid, Path(f"/proc/{pid}/cmdline")) for pid in below(os.getpid()))
    return [p for p, path in named if path.read_bytes().startswith(b"ray::MapWorker(MapBatches(W")]


def kill_one(parts: Path, killed: list[int], until: float) -> None:
    """End a worker that is at work, the hard way, as soon as the first part is written."""
    while not killed and time.monotonic() < until:
        with suppress(OSError):  # one ended while it was looked at
            if any(parts.glob("part-*")) and (found := ray_workers()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, np.ndarray]:
    """The embeddings of a job of two workers, one of which was killed."""
    killed: list[int] = []
    until = time.monotonic() + 300
    killer = threading.Thread(target=kill_one, args=(place / "killed" / "parts", killed, until))
    killer.start()
    assert run_command([str(word) for word in words(place, "killed", "--workers", 2)]) == 0
    killer.join()
    assert killed
    return embeddings(place / "killed")


def test_a_killed_worker_loses_and_doubles_nothing(
    place: Path, whole: dict[str, np.ndarray]
) -> None:
    assert len(whole) == PICTURES
    result = json.loads((place / "killed" / "result.json").read_text())
    assert (result["pictures"], result["bad"], result["parts"]) == (PICTURES + 1, 1, 7)
    bad = pq.read_table(place / "killed" / "bad").to_pylist()
    assert [row["id"] for row in bad] == ["bad.png"]
    assert "not an image file" in bad[0]["error"]


def test_a_job_goes_on_with_the_parts_that_are_missing(
    place: Path, whole: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "killed", place / "cut")
    kept = place / "cut" / "parts"
    for number in (1, 4):
        (kept / f"part-000000{number}.parquet").unlink()
    (kept / ".part-0000001.abc.unfinished").write_bytes(b"PAR1")
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("part-*")}
    code, out, err = turbovlm_runs(capsys, *words(place, "cut", "--json"))
    assert code == 0, err
    done = json.loads(out)
    assert done["pictures_now"] == 2 * PART
    after = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert {name: after[name] for name in before} == before
    assert len(after) == 7
    again = embeddings(place / "cut")
    assert again.keys() == whole.keys()
    for name, vector in whole.items():
        np.testing.assert_allclose(again[name], vector, atol=1e-5)
    code, out, err = turbovlm_runs(capsys, *words(place, "cut"))
    assert code == 0, err
    assert out == (
        f"embed with {MODEL}, Merge(r=8): {PICTURES} pictures in {place / 'cut' / 'parts'}\n"
        f"1 more could not be read: {place / 'cut' / 'bad'}\n"
    )


def test_a_folder_of_another_job_is_refused(
    place: Path, whole: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = turbovlm_runs(capsys, *words(place, "killed", "--dtype", "bf16"))
    assert code == 2
    assert "holds a run with another dtype (dtype: 'fp32' there, 'bf16' now)" in err
    more = place / "scenes" / "zz.png"
    more.write_bytes(b"one more")
    code, _, err = turbovlm_runs(capsys, *words(place, "killed"))
    more.unlink()
    assert code == 2
    assert "holds a run with another data" in err


def test_search_by_picture_and_by_text(
    place: Path, whole: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    picture = place / "scenes" / "scene07.png"
    argv = ["search", place / "killed", "--image", picture, "--top", 2, "--json"]
    code, out, err = turbovlm_runs(capsys, *argv)
    assert code == 0, err
    first, second = json.loads(out)
    assert first["id"] == "scene07.png"
    assert first["cosine"] == pytest.approx(1, abs=1e-4)
    assert second["cosine"] < 0.99
    query = whole["scene07.png"]
    best = max((v @ query, name) for name, v in whole.items() if name != "scene07.png")
    assert second["id"] == best[1]
    code, out, err = turbovlm_runs(capsys, "search", place / "killed", "--text", "a red circle")
    assert code == 0, err
    assert len(out.splitlines()) == 11
    code, _, err = turbovlm_runs(capsys, "search", place / "killed")
    assert code == 2
    assert "one of --text and --image" in err


def test_a_file_that_breaks_on_the_way_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pictures = [path.read_bytes() for path in sorted((place / "scenes").glob("scene0*.png"))]
    path = parquet(tmp_path / "scenes.parquet", pictures, 2, nested=True)
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)  # the first row group; the footer still says how it was
    path.write_bytes(data)
    argv = ["run", "embed", MODEL, "--data", path, "--out", tmp_path / "out", "--part", 2]
    code, out, err = turbovlm_runs(capsys, *argv)
    assert (code, out) == (2, "")
    assert "cannot read rows of" in err
    assert "Traceback" not in err


def test_what_cannot_be_right_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--part", "0"], "--part must be at least 1"),
        (["--question", "what?"], "--question is not for embed"),
        (["--keep", "0.5"], "no vision-language model whose prompt can be shortened"),
        (["--alpha", "1"], "--alpha without --r or --speedup changes nothing"),
    ]
    for more, message in cases:
        job = ["run", "embed", MODEL, "--data", place / "scenes", "--out", tmp_path / "new"]
        code, out, err = turbovlm_runs(capsys, *job, *more)
        assert (code, out) == (2, ""), err
        assert message in err
        assert not (tmp_path / "new").exists()
