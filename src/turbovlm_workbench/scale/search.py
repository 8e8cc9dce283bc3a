"""Nearest pictures by their embeddings: a FAISS index on disk, and queries by picture or text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

import turbovlm
from turbovlm.errors import ConfigError, InputError, require
from turbovlm_workbench.data.predictions import read_settings
from turbovlm_workbench.load.device import pick_device, pick_dtype
from turbovlm_workbench.load.matching import MatchingModel
from turbovlm_workbench.run.identity import model_digest
from turbovlm_workbench.run.runner import Progress
from turbovlm_workbench.scale.hush import STDOUT, hushed
from turbovlm_workbench.scale.parts import ID, UNFINISHED, finished_parts
from turbovlm_workbench.scale.work import Asked, Embed
from turbovlm_workbench.settings import from_plain

FOLDER = "index"
EXACT = 20_000
"""Up to so many pictures every one is compared with the query."""
SAMPLE = 64  # vectors a list of the index, from which its centre is learnt
SHARD = 200_000  # vectors in memory at once
PROBED = 8  # one list in so many is looked at

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Neighbour:
    """A picture near a query.

    Attributes:
        id: of the picture.
        cosine: between its embedding and the query's.
    """

    id: str
    cosine: float


def load_query_model(out: Path, weights: Path | None, device: str | None) -> Embed:
    """The model that a folder was embedded with, with the same setting.

    Args:
        out: the folder of a job ``embed``.
        weights: the local checkpoint of that job, if it had one.
        device: where to compute; None for an accelerator if there is one.

    Raises:
        InputError: if the folder is of no such job, or the model holds other weights now.
        TurboError: if the model cannot be loaded.
    """
    told = read_settings(out)
    if told.get("job") != "embed":
        raise InputError(f"{out} holds no embeddings: give the --out of turbovlm run embed")
    place = pick_device(device)
    dtype = pick_dtype(told["dtype"], place)
    work = Embed(Asked("embed", told["model"], None if weights is None else str(weights)))
    if model_digest(work.parts) != told["weights"]:
        raise InputError(
            f"{told['model']} holds other weights than {out} was embedded with: give the same ones "
            "(--weights FILE, if there was one)"
        )
    model = work.loaded.model.to(device=place, dtype=dtype)
    if applied := from_plain(told["merge"]):
        turbovlm.apply(model, *applied)
    return work


def embed_picture(work: Embed, image: Image.Image) -> Vectors:
    """The embedding (D,) of a picture."""
    with torch.inference_mode():
        return work.run(work.loaded.pixels([image]))[0]


def embed_text(work: Embed, text: str) -> Vectors:
    """The embedding (D,) of a text.

    Raises:
        ConfigError: if the model embeds pictures alone.
    """
    if not isinstance(work.loaded, MatchingModel):
        raise ConfigError(
            f"{work.loaded.name} embeds pictures alone: ask with --image, or embed with a model of "
            "pictures and texts, such as CLIP"
        )
    with torch.inference_mode():
        return work.loaded.read([text])[0].float().cpu().numpy()


def build_index(out: Path, progress: Progress = lambda stage, done, total: None) -> None:
    """Index the embeddings that a job has written so far, unless that is done.

    Args:
        out: the folder of a job ``embed``.
        progress: told how many vectors are indexed.

    Raises:
        InputError: if there are none, or the index cannot be written.
        MissingExtra: if faiss is not installed.
    """
    counts = _counts(out)
    if not (total := sum(counts.values())):
        raise InputError(f"{out} holds no embeddings yet: give the --out of turbovlm run embed")
    if _indexed(out) == counts:
        return
    beside = out / (FOLDER + UNFINISHED)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        _write_index(out, beside, total, progress)
        (beside / "parts.json").write_text(json.dumps(counts), encoding="utf-8")
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        beside.rename(out / FOLDER)
    except (OSError, RuntimeError) as error:  # faiss's own is a RuntimeError
        shutil.rmtree(beside, ignore_errors=True)
        raise InputError(f"cannot write an index into {out} ({error}): make room") from error


def nearest_pictures(out: Path, query: Vectors, top: int) -> list[Neighbour]:
    """The pictures whose embeddings are most like a query, the best first.

    Args:
        out: a folder that `build_index` indexed; the vectors stay on disk.
        query: (D,).
        top: most to return.

    Raises:
        ConfigError: for ``top`` below 1.
    """
    if top < 1:
        raise ConfigError(f"--top must be at least 1, got {top}")
    faiss = require("faiss", "scale")
    flags = faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY
    with hushed(STDOUT):
        index = faiss.read_index(str(out / FOLDER / "index.faiss"), flags)
    index.nprobe = -(-index.nlist // PROBED)
    cosines, rows = index.search(_unit(query[None]), min(top, index.ntotal))
    kept = [(row, value) for row, value in zip(rows[0], cosines[0], strict=True) if row >= 0]
    names = _names(out, [int(row) for row, _ in kept])
    return [Neighbour(names[int(row)], float(value)) for row, value in kept]


def _write_index(out: Path, folder: Path, total: int, progress: Progress) -> None:
    faiss = require("faiss", "scale")
    ondisk = require("faiss.contrib.ondisk", "scale")
    lists = 1 if total <= EXACT else isqrt(total)
    sample = _sample(out, total, lists * SAMPLE)
    width = sample.shape[1]
    flat = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFFlat(flat, width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(sample)
    shards: list[str] = []
    done = 0
    for vectors in _blocks(out):
        progress("indexing", done, total)
        shard = faiss.clone_index(index)
        shard.add_with_ids(vectors, np.arange(done, done + len(vectors)))
        shards.append(str(folder / f"shard{len(shards)}"))
        faiss.write_index(shard, shards[-1])
        done += len(vectors)
    with hushed(STDOUT):
        ondisk.merge_ondisk(index, shards, str(folder / "vectors.ivfdata"))
    faiss.write_index(index, str(folder / "index.faiss"))
    for path in shards:
        Path(path).unlink()


def _counts(out: Path) -> dict[str, int]:
    """How many embeddings each part has, by the name of its file."""
    return {p.name: pq.read_metadata(p).num_rows for p in finished_parts(out).values()}


def _indexed(out: Path) -> Mapping[str, int] | None:
    path = out / FOLDER / "parts.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _vectors(path: Path) -> Vectors:
    """The unit embeddings (N, D) of a part."""
    column = pq.read_table(path, columns=[Embed.column])[Embed.column].combine_chunks()
    if not len(column):
        return np.zeros((0, 0), np.float32)
    return _unit(column.flatten().to_numpy().reshape(len(column), -1))


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def _blocks(out: Path) -> Iterator[Vectors]:
    """All embeddings in order, up to `SHARD` at a time."""
    held: list[Vectors] = []
    for path in finished_parts(out).values():
        if len(vectors := _vectors(path)):
            held.append(vectors)
        if sum(map(len, held)) >= SHARD:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def _sample(out: Path, total: int, wanted: int) -> Vectors:
    """About as many embeddings, from parts that lie evenly apart."""
    paths = list(finished_parts(out).values())
    step = max(1, total // wanted)
    parts = [_vectors(path)[:: min(step, 8)] for path in paths[:: max(1, step // 8)]]
    return np.concatenate([part for part in parts if len(part)])


def _names(out: Path, rows: Sequence[int]) -> dict[int, str]:
    """Ids of pictures by their numbers in the index."""
    names: dict[int, str] = {}
    first = 0
    for path, count in zip(finished_parts(out).values(), _counts(out).values(), strict=True):
        if own := [row for row in rows if first <= row < first + count]:
            ids: Any = pq.read_table(path, columns=[ID])[ID]
            names |= {row: ids[row - first].as_py() for row in own}
        first += count
    return names
