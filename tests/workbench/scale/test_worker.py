"""A worker and the files that it fills, without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workbench import build
from tests.workbench.scale.make import MODEL, scene_files
from turbovlm.config import Merge, Setting, VisualTokens
from turbovlm.errors import ConfigError, InputError, ModelError
from turbovlm_workbench.data.images import decode_image, read_image
from turbovlm_workbench.load.by_task import load_embedding
from turbovlm_workbench.load.matching import MatchingModel
from turbovlm_workbench.load.models import load_model
from turbovlm_workbench.run.identity import model_digest
from turbovlm_workbench.scale.parts import (
    LISTING,
    clear_unfinished,
    finished_parts,
    read_part,
    write_parts,
)
from turbovlm_workbench.scale.source import open_source, write_listing
from turbovlm_workbench.scale.work import Asked, load_work
from turbovlm_workbench.scale.worker import Employment, Worker


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Four scenes, and a file that is no picture."""
    folder = scene_files(tmp_path_factory.mktemp("part") / "scenes", 4)
    (folder / "bad.png").write_bytes(b"no picture")
    opened = open_source(folder)
    write_listing(opened.parts(), folder / LISTING)
    (table,) = read_part(opened, folder / LISTING, 0)
    return table


def worker(asked: Asked, *applied: Setting) -> Worker:
    digest = model_digest(load_work(asked).parts)
    return Worker(Employment(asked, applied, digest, "cpu", "fp32"))


def images(part: pa.Table) -> list[int]:
    return [row for row, name in enumerate(part["id"].to_pylist()) if name != "bad.png"]


def test_embeddings_are_the_models_own_and_merging_changes_them(part: pa.Table) -> None:
    plain = worker(Asked("embed", MODEL))(part)
    merged = worker(Asked("embed", MODEL), Merge(r=8))(part)
    assert plain.column_names == ["part", "of", "id", "error", "embedding"]
    assert "not an image file" in plain["error"][0].as_py()
    assert plain["error"].null_count == 4
    loaded = load_embedding(MODEL)
    assert isinstance(loaded, MatchingModel)
    sources = [part["data"][row].as_py() for row in images(part)]
    pixels = loaded.pixels([decode_image(data, "") for data in sources])
    expected = loaded.see(pixels).detach().numpy()
    vectors = np.array([plain["embedding"][row].as_py() for row in images(part)], np.float32)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    others = np.array([merged["embedding"][row].as_py() for row in images(part)], np.float32)
    assert np.abs(others - vectors).max() > 1e-3


def test_captions_and_answers(part: pa.Table) -> None:
    captions = worker(Asked("caption", "lab:captioner", beams=1))(part)["caption"].to_pylist()
    assert captions[0] is None
    assert all("a " in text for text in captions[1:])
    question = "how many shapes are there?"
    asked = Asked("answer", "lab:vlm", question=question)
    answers = worker(asked, VisualTokens(keep=0.5))(part)["answer"].to_pylist()
    assert answers[0] is None
    assert all(answers[1:])


def test_a_table_of_bad_pictures_alone_keeps_its_types(part: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "bad").mkdir()
    one = part.slice(0, 1).set_column(1, "of", pa.array([1]))
    told = write_parts(tmp_path, worker(Asked("embed", MODEL))(one))
    assert told.to_pylist() == [{"part": 0, "pictures": 1, "bad": 1}]
    (path,) = finished_parts(tmp_path).values()
    assert pq.read_schema(path).field("embedding").type == pa.list_(pa.float32())
    assert pq.read_table(tmp_path / "bad")["id"].to_pylist() == ["bad.png"]


def test_a_part_is_written_whole_or_not_at_all(part: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    done = part.drop_columns(["data"]).append_column("caption", pa.array(["x"] * len(part)))
    with pytest.raises(RuntimeError, match="part 0 came in pieces"):
        write_parts(tmp_path, done.slice(1))
    with pytest.raises(InputError, match="the same command goes on from what is written"):
        write_parts(tmp_path / "gone", done)
    assert list((tmp_path / "parts").iterdir()) == []
    two = pa.concat_tables([done, done.set_column(0, "part", pa.array([3] * len(done)))])
    write_parts(tmp_path, two)
    (tmp_path / "parts" / ".part-0000001.0.unfinished").write_bytes(b"half")
    assert list(finished_parts(tmp_path)) == [0, 3]
    clear_unfinished(tmp_path)
    assert len(list((tmp_path / "parts").iterdir())) == 2
    assert pq.read_table(finished_parts(tmp_path)[3]).column_names == ["id", "caption"]


def test_a_picture_that_cannot_be_prepared_is_bad_and_no_end(part: pa.Table) -> None:
    one = worker(Asked("embed", MODEL))

    def fails(images: object) -> object:
        raise ValueError("no such shape")

    object.__setattr__(one.work.loaded, "prepare", fails)
    errors = one(part)["error"].to_pylist()
    assert errors[1].endswith("(no such shape)")
    assert "cannot prepare image scene00.png" in errors[1]


def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown task 'draw': use one of embed, caption, answer"):
        Asked("draw", MODEL)
    with pytest.raises(ConfigError, match="--beams is not for embed"):
        Asked("embed", MODEL, beams=2)
    with pytest.raises(ConfigError, match="--question is not for caption"):
        Asked("caption", MODEL, question="what?")
    with pytest.raises(ConfigError, match="answer needs what to ask"):
        Asked("answer", MODEL, question=" ")
    with pytest.raises(ModelError, match="writes no captions"):
        load_work(Asked("caption", str(build.vit_backbone(tmp_path / "vit"))))
    with pytest.raises(ModelError, match="other weights on this machine"):
        Worker(Employment(Asked("embed", MODEL), (), "other", "cpu", "fp32"))


def test_which_models_embed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):  # CLIP's text side is loaded too
        load_embedding(str(build.clip(tmp_path / "clip")))
    vit = build.vit_backbone(tmp_path / "vit")
    work = load_work(Asked("embed", str(vit)))
    image = read_image(next(build.photos(tmp_path / "photos", 1).glob("*.jpg")))
    (vector,) = work.run(work.loaded.pixels([image]))
    raw = load_model(str(vit)).model(work.loaded.pixels([image]))
    np.testing.assert_allclose(vector, raw.pooler_output[0].detach().numpy(), atol=1e-5)
    with pytest.raises(ModelError, match="is a classifier, which gives no embedding"):
        load_embedding(str(build.vit_classifier(tmp_path / "classifier")))
    with pytest.raises(ModelError, match="not for image-text retrieval"):
        load_embedding("lab:vqa")
