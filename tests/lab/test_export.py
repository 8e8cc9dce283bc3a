"""The files that scenes are written to can be read, and say what the scenes show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.lab.test_pairs import true
from turbovlm.errors import InputError
from turbovlm_lab import grammar
from turbovlm_lab.export import export, main
from turbovlm_lab.lettering import worded_scene
from turbovlm_lab.questions import ask
from turbovlm_lab.scenes import layout, scene, seed_of_split

SCENES = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("lab") / "new" / "scenes"
    main([str(target), "--scenes", str(SCENES), "--split", "validation"])
    return target


def seed(image: str) -> int:
    return seed_of_split("validation", int(Path(image).stem))


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_images_are_the_scenes(folder: Path) -> None:
    for index in range(SCENES):
        written = np.asarray(Image.open(folder / f"{index:012d}.png"))
        np.testing.assert_array_equal(written, scene(seed_of_split("validation", index)).image)


def test_captions_are_those_of_the_scenes_in_both_layouts(folder: Path) -> None:
    coco = load(folder / "captions.json")
    files = {entry["id"]: entry["file_name"] for entry in coco["images"]}
    found = {files[entry["image_id"]]: entry["caption"] for entry in coco["annotations"]}
    assert found == {e["image"]: e["captions"][0] for e in lines(folder / "captions.jsonl")}
    assert len(found) == SCENES
    for image, caption in found.items():
        assert (folder / image).is_file()
        assert caption == grammar.describe(layout(seed(image)))


def test_questions_and_annotations_belong_together(folder: Path) -> None:
    questions = load(folder / "vqa_questions.json")["questions"]
    annotations = load(folder / "vqa_annotations.json")["annotations"]
    assert len({q["question_id"] for q in questions}) == len(questions) >= 6 * SCENES
    for question, annotation in zip(questions, annotations, strict=True):
        assert question["question_id"] == annotation["question_id"]
        assert question["image_id"] == annotation["image_id"]
        assert len(annotation["answers"]) == 10
        assert {a["answer"] for a in annotation["answers"]} == {
            annotation["multiple_choice_answer"]
        }
        own = seed_of_split("validation", question["image_id"])
        asked = {q.text: q.answer for q in ask(layout(own), own)}
        assert asked[question["question"]] == annotation["multiple_choice_answer"]
    types = {a["answer_type"] for a in annotations}
    assert types == {"yes/no", "number", "other"}


def test_pairs_are_labelled_as_their_images_show(folder: Path) -> None:
    known = {scene(seed_of_split("validation", i)).image.tobytes(): i for i in range(SCENES)}
    rows = lines(folder / "nlvr2.jsonl")
    assert len(rows) == SCENES // 2
    assert len({row["identifier"] for row in rows}) == len(rows)
    for row in rows:
        stem, _, sentence = row["identifier"].rpartition("-")
        assert sentence == "0"
        left, right = (
            layout(
                seed_of_split("validation", known[np.asarray(Image.open(folder / file)).tobytes()])
            )
            for file in (f"{stem}-img0.png", f"{stem}-img1.png")
        )
        assert row["label"] == str(true(row["sentence"], left, right))
    groups = [row["identifier"].split("-")[:2] for row in rows]
    assert groups == [["test", str(n // 4)] for n in range(len(rows))]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="never overwritten"):
        export(tmp_path, SCENES)
    with pytest.raises(InputError, match="never overwritten"):
        export(tmp_path / "mine.txt", SCENES)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(SystemExit, match="never overwritten"):
        main([str(tmp_path)])


def test_too_few_scenes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 8"):
        export(tmp_path / "new", 7)
    assert list(tmp_path.iterdir()) == []


def test_words_are_printed_and_asked_for(tmp_path: Path) -> None:
    main([str(tmp_path / "new"), "--scenes", "8", "--split", "validation", "--words"])
    given = load(tmp_path / "new" / "vqa_annotations.json")["annotations"]
    said = {
        a["image_id"]: a["multiple_choice_answer"] for a in given if a["question_type"] == "word"
    }
    assert len(said) == 8
    ids = [a["question_id"] for a in given]
    assert len(set(ids)) == len(ids)
    for index in range(8):
        drawn = worded_scene(seed_of_split("validation", index))
        written = np.asarray(Image.open(tmp_path / "new" / f"{index:012d}.png"))
        np.testing.assert_array_equal(written, drawn.image)
        assert said[index] == (drawn.word.text if drawn.word else "none")
    assert "none" in said.values()
    assert len(set(said.values())) > 4
