"""Questions in the layouts of VQAv2, OK-VQA, GQA and VizWiz, and in JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.workbench.data.files import lines, touch, write
from turbovlm.errors import InputError
from turbovlm_workbench.data import Question, read_questions

TEN = ["yes"] * 7 + ["no", "maybe", ""]
DICTS: list[dict[str, Any]] = [{"answer": answer, "answer_id": i} for i, answer in enumerate(TEN)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    touch(tmp_path, "a.jpg", "n161313.jpg", "2405722.jpg")
    touch(tmp_path, "coco/val2014/COCO_val2014_000000262148.jpg", "coco/000000000042.png")
    touch(tmp_path, "coco/notes_000000000043.jpg.txt")
    return tmp_path


def vqa(folder: Path, **changes: Any) -> tuple[Path, Path]:
    questions = [
        {"image_id": 262148, "question": "Is it?", "question_id": 262148000},
        {"image_id": 42, "question": "Where?", "question_id": 5},
    ]
    annotations = [
        {"question_id": 5, "answers": DICTS, "question_type": "where"},
        {"question_id": 262148000, "answers": DICTS[:4]},
        {"question_id": 6, "answers": DICTS},  # of a question that was left out
    ]
    return (
        write(folder / "questions.json", {"info": {}, "questions": questions} | changes),
        write(folder / "annotations.json", {"annotations": annotations} | changes),
    )


def test_vqa_with_images_found_by_number(folder: Path) -> None:
    questions, annotations = vqa(folder)
    image = folder / "coco/val2014/COCO_val2014_000000262148.jpg"
    expected = [
        Question("262148000", image, "Is it?", tuple(TEN[:4])),
        Question("5", folder / "coco/000000000042.png", "Where?", tuple(TEN)),
    ]
    assert read_questions(questions, folder / "coco", annotations) == expected
    assert read_questions(questions, answers=annotations) == expected


def question(number: int, image: Any = 42) -> dict[str, Any]:
    return {"image_id": image, "question": "Who?", "question_id": number}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"questions": [question(9)]},
            r"questions\[0\]: no answer to question 9 in .*annotations\.json: give its split's",
        ),
        (
            {"questions": [question(5, 43)]},
            r"questions\[0\]: no image COCO_\.\.\._000000000043\.jpg or 000000000043\.jpg below",
        ),
        ({"questions": [question(5, "x")]}, r"questions\[0\]: no image COCO_"),
        ({"questions": [question(5), question(5)]}, r"questions\[1\] and .*\[0\] are both '5'"),
        ({"questions": [{"image_id": 42, "question_id": 5}]}, r"there is no 'question', only"),
        ({"questions": []}, "'questions' is empty"),
        (
            {"annotations": [{"question_id": 5, "answers": DICTS}] * 2},
            r"annotations\[1\] and .*annotations\[0\] are both '5'",
        ),
        (
            {"questions": [question(5)], "annotations": [{"question_id": 5, "answers": [{}]}]},
            r"annotations\[0\]: 'answers\[0\]\.answer' must be a text, got null",
        ),
        (
            {"questions": [question(5)], "annotations": [{"question_id": 5}]},
            r"annotations\[0\]: there is no 'answers'",
        ),
    ],
)
def test_wrong_vqa_files_name_the_place(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    questions, annotations = vqa(folder, **changes)
    with pytest.raises(InputError, match=message):
        read_questions(questions, None, annotations)


def test_the_second_file_of_vqa_and_of_nothing_else(folder: Path) -> None:
    questions, annotations = vqa(folder)
    with pytest.raises(InputError, match="stand in a second file: give it with --answers"):
        read_questions(questions)
    with pytest.raises(InputError, match="there is no 'annotations', only info, questions"):
        read_questions(questions, None, questions)
    rows = lines(folder / "x.jsonl", {"image": "a.jpg", "question": "Who?", "answers": ["me"]})
    with pytest.raises(InputError, match=r"x\.jsonl holds its own answers: leave --answers out"):
        read_questions(rows, None, annotations)
    with pytest.raises(InputError, match=r"x\.jsonl is no file of VQA annotations"):
        read_questions(questions, None, rows)


def test_gqa(folder: Path) -> None:
    data = {
        "201": {"imageId": "n161313", "question": "Left?", "answer": "no", "isBalanced": True},
        "202": {"imageId": "2405722", "question": "Which side?", "answer": "left"},
    }
    assert read_questions(write(folder / "gqa.json", data)) == [
        Question("201", folder / "n161313.jpg", "Left?", ("no",)),
        Question("202", folder / "2405722.jpg", "Which side?", ("left",)),
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, r"x\.json, 'a': these are no questions: give VQA's or GQA's JSON, or"),
        ({"201": {"question": "Left?"}}, "'201': these are no questions"),
        ({"201": {"imageId": "no", "question": "Left?", "answer": "a"}}, "'201': no image no.jpg"),
        ({"201": {"imageId": "2405722", "question": "Left?"}}, "'201': there is no 'answer'"),
    ],
)
def test_wrong_gqa_names_the_question(folder: Path, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_questions(write(folder / "x.json", value))


def test_vizwiz_and_json_lines(folder: Path) -> None:
    row: dict[str, Any] = {"image": "a.jpg", "question": "What is it?", "answers": DICTS}
    expected = Question("a.jpg What is it?", folder / "a.jpg", "What is it?", tuple(TEN))
    assert read_questions(write(folder / "vizwiz.json", [row])) == [expected]
    assert read_questions(write(folder / "one.json", row)) == [expected]
    texts = row | {"answers": TEN}
    assert read_questions(lines(folder / "x.jsonl", texts)) == [expected]
    named = {"image": "a.jpg", "question": "What is it?", "answer": TEN}
    blip = [named | {"question_id": 3}, named | {"id": "four"}]
    assert [q.id for q in read_questions(write(folder / "blip.json", blip))] == ["3", "four"]


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "a.jpg", "question": "Who?", "answers": ["me"]} | changes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), row(image="no.jpg")], r"line 2: no image no\.jpg"),
        ([row(question="")], "line 1: 'question' must be a text"),
        ([row(answers="me")], "line 1: 'answers' must be a list"),
        ([row(answers=[1])], r"line 1: 'answers\[0\]' must be a text, got 1"),
        ([row(), row()], r"line 2 and .*line 1 are both 'a\.jpg Who\?'"),
        (
            [row(answers=TEN), row(question="?", answers=TEN[:3])],
            "line 2: 'answers' holds 3",
        ),
        (
            [row(answers=["a", "b", "c"])],
            "line 1: 'answers' holds 3, VQA accuracy needs those of 4",
        ),
        ([row(answers=TEN), row(question="?")], "line 2: 'answers' holds 1, VQA accuracy needs"),
        (
            [row(), row(question="?", answers=TEN)],
            "line 2: .* holds 10, but the first question has",
        ),
    ],
)
def test_wrong_json_lines_name_the_place(folder: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_questions(lines(folder / "x.jsonl", *rows))
