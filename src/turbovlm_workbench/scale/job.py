"""A job: what it is, which parts are missing, and the run that does them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import turbovlm
from turbovlm.errors import InputError
from turbovlm.measure import environment
from turbovlm_workbench.data.predictions import claim, digest
from turbovlm_workbench.data.predictions import replace as write_text
from turbovlm_workbench.load.device import pick_device, pick_dtype
from turbovlm_workbench.run.identity import model_digest
from turbovlm_workbench.run.runner import RESULT, Progress
from turbovlm_workbench.scale.parts import (
    BAD,
    LISTING,
    PARTS,
    UNFINISHED,
    clear_unfinished,
    finished_parts,
)
from turbovlm_workbench.scale.pipeline import (
    Pool,
    check_pool,
    cluster_device,
    ray_running,
    run_parts,
)
from turbovlm_workbench.scale.source import (
    PictureSource,
    Piece,
    count_listing,
    read_listing,
    write_listing,
)
from turbovlm_workbench.scale.work import Asked, load_work
from turbovlm_workbench.scale.worker import Employment
from turbovlm_workbench.settings import Settings, to_plain


@dataclass(frozen=True)
class Job:
    """What is asked for, apart from how many workers do it.

    Args:
        asked: what is done with every picture.
        applied: to the model; nothing for the model as it is.
        source: of the pictures.
        out: the folder of the results.
        device: where workers compute; None for an accelerator if there is one.
        dtype: number format of weights and pixels.
    """

    asked: Asked
    applied: Settings
    source: PictureSource
    out: Path
    device: str | None = None
    dtype: str = "fp32"


def run_job(
    job: Job, pool: Pool, progress: Progress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Do the parts that are missing in the job's folder.

    Args:
        job: what to do.
        pool: of workers.
        progress: told how far it is, in pictures.

    Returns:
        What was done, in JSON types, as in ``result.json``.

    Raises:
        InputError: if the folder holds something else, or the pictures are not those of its job.
        TurboError: for a model, setting, device or cluster that cannot be used, before anything
            is written.
    """
    progress("loading", 0, 0)
    told = _employment(job, pool)
    settings = {
        "job": job.asked.work,
        "model": job.asked.model,
        "merge": to_plain(job.applied),
        "question": job.asked.question,
        "beams": job.asked.beams,
        "column": getattr(job.source, "column", None),
        "dtype": job.dtype,
        "part": job.source.most,
        "weights": told.digest,
        "data": digest(_listed(job.source, progress)),
    }
    if _used(job.out):
        claim(job.out, settings)
    run: dict[str, Any] = {}
    if _missing(job.out) != []:
        progress("starting Ray", 0, 0)
        with ray_running(pool):
            told = replace(told, device=told.device or cluster_device())
            check_pool(pool, told.device)
            claim(job.out, settings)
            _prepare(job, settings["data"])
            run = _run(job, pool, told, progress)
    done = {"settings": settings, **_counted(job.out), **run, "environment": environment()}
    if run or not (job.out / RESULT).exists():  # a kill can come between the two
        write_text(job.out / RESULT, json.dumps(done, indent=2) + "\n")
    return done


def _employment(job: Job, pool: Pool) -> Employment:
    """What workers are told, once the model is known to load and the settings to fit."""
    here = pool.address is None  # else this machine need not have the accelerator
    device = pick_device(job.device).type if here else job.device or ""
    if here:
        pick_dtype(job.dtype, pick_device(device))
    work = load_work(job.asked)
    content = model_digest(work.parts)
    if job.applied:
        turbovlm.apply(work.loaded.model, *job.applied)
    weights = None if job.asked.weights is None else _whole_path(job.asked.weights)
    asked = replace(job.asked, model=_whole_path(job.asked.model), weights=weights)
    return Employment(asked, job.applied, content, device, job.dtype)


def _whole_path(name: str) -> str:
    """A name of something here with its folder, as workers may stand elsewhere."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _listed(source: PictureSource, progress: Progress) -> Iterator[list[Piece]]:
    found = 0
    for part in source.parts():
        yield part
        found += sum(piece.pictures for piece in part)
        progress("listing pictures", found, 0)


def _used(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def _missing(out: Path) -> list[tuple[int, int]] | None:
    """Number and pictures of the parts that are not done; None where no job was listed."""
    if not (out / LISTING).exists():
        return None
    done = finished_parts(out)
    return [(n, count) for n, count in enumerate(count_listing(out / LISTING)) if n not in done]


def _prepare(job: Job, data: str) -> None:
    """The listing, once, and the folders of the parts."""
    for folder in (PARTS, BAD):
        (job.out / folder).mkdir(exist_ok=True)
    clear_unfinished(job.out)
    path = job.out / LISTING
    if path.exists():
        return
    beside = path.with_name(path.name + UNFINISHED)
    write_listing(job.source.parts(), beside)
    with pq.ParquetFile(beside) as file:
        parts = file.num_row_groups
    if digest(read_listing(beside, part) for part in range(parts)) != data:
        beside.unlink()
        raise InputError(
            f"{job.source.root} changed while it was listed: begin again when it is complete"
        )
    beside.replace(path)


def _run(job: Job, pool: Pool, told: Employment, progress: Progress) -> dict[str, Any]:
    todo: Sequence[tuple[int, int]] = _missing(job.out) or []
    total = sum(count_listing(job.out / LISTING))
    begun = total - sum(count for _, count in todo)
    progress(job.asked.work, begun, total)
    start = time.perf_counter()
    pictures = 0
    for part in run_parts(job.source, job.out, todo, told, pool):
        pictures += part["pictures"]
        progress(job.asked.work, begun + pictures, total)
    seconds = time.perf_counter() - start
    return {
        "workers": pool.workers,
        "device": told.device,
        "pictures_now": pictures,
        "seconds": round(seconds, 3),
        "pictures_per_second": round(pictures / seconds, 3),
    }


def _counted(out: Path) -> dict[str, int]:
    """Pictures, bad ones among them, and parts."""
    bad = sum(pq.read_metadata(path).num_rows for path in (out / BAD).glob("part-*.parquet"))
    counts = count_listing(out / LISTING)
    return {"pictures": sum(counts), "bad": bad, "parts": len(counts)}
