"""The index on disk against every vector compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from turbovlm.errors import ConfigError, InputError
from turbovlm_workbench.scale import search
from turbovlm_workbench.scale.parts import part_name
from turbovlm_workbench.scale.search import build_index, nearest_pictures


def embedded(folder: Path, vectors: NDArray[np.float32], part: int, first: int = 0) -> None:
    """Vectors as a job writes them, in parts."""
    (folder / "parts").mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(vectors), part), first):
        rows = list(vectors[start : start + part])
        ids = [f"{number}:{row}" for row in range(len(rows))]
        embeddings = pa.array(rows, pa.list_(pa.float32()))
        table = pa.table({"id": ids, "embedding": embeddings})
        pq.write_table(table, folder / "parts" / part_name(number))


def close(vectors: NDArray[np.float32], query: NDArray[np.float32], top: int) -> list[int]:
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    return [int(n) for n in np.argsort(-cosines)[:top]]


def test_a_small_index_is_exact_and_grows_with_the_job(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    query = rng.normal(size=8).astype(np.float32)
    embedded(tmp_path, vectors[:30], 7)
    embedded(tmp_path, vectors[:0], 1)
    build_index(tmp_path)
    found = nearest_pictures(tmp_path, query, 5)
    assert [one.id for one in found] == [f"{n // 7}:{n % 7}" for n in close(vectors[:30], query, 5)]
    assert found[0].cosine == pytest.approx(
        vectors[close(vectors[:30], query, 1)[0]]
        @ query
        / np.linalg.norm(query)
        / np.linalg.norm(vectors[close(vectors[:30], query, 1)[0]])
    )
    before = (tmp_path / "index" / "index.faiss").stat().st_mtime_ns
    build_index(tmp_path)
    assert (tmp_path / "index" / "index.faiss").stat().st_mtime_ns == before
    embedded(tmp_path, query[None] * 3, 1, first=9)
    build_index(tmp_path)
    assert nearest_pictures(tmp_path, query, 1)[0].id == "9:0"
    shutil.move(tmp_path / "index", tmp_path / "kept")  # a folder can be moved
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "parts", tmp_path / "other" / "parts")
    shutil.move(tmp_path / "kept", tmp_path / "other" / "index")
    assert len(nearest_pictures(tmp_path / "other", query, 99)) == 31


def test_a_large_index_has_lists_and_finds_what_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "EXACT", 500)
    monkeypatch.setattr(search, "SHARD", 700)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 16))
    vectors = centres[rng.integers(0, 20, 3000)] + rng.normal(size=(3000, 16)) * 0.2
    vectors = vectors.astype(np.float32)
    embedded(tmp_path, vectors, 100)
    build_index(tmp_path)
    right = 0
    for query in vectors[:50]:
        near = {f"{n // 100}:{n % 100}" for n in close(vectors, query, 10)}
        right += len(near & {one.id for one in nearest_pictures(tmp_path, query, 10)})
    assert right / 500 > 0.9
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == [
        "index.faiss", "parts.json", "vectors.ivfdata",
    ]  # fmt: skip
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no embeddings yet"):
        build_index(tmp_path)
    with pytest.raises(ConfigError, match="--top must be at least 1, got 0"):
        nearest_pictures(tmp_path, np.zeros(3, np.float32), 0)
