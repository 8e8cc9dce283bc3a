"""Questions about images, for visual question answering."""

from __future__ import annotations

import re
from pathlib import Path

from turbovlm.errors import InputError
from turbovlm_workbench.data.examples import Question
from turbovlm_workbench.data.records import Record, distinct, find_image, read_file

_COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})\.(?:jpg|png)")


def read_questions(
    data: Path, images: Path | None = None, answers: Path | None = None
) -> list[Question]:
    """Read questions; the layout is told by the file's content.

    - VQAv2 and OK-VQA, which come as two files: ``data`` with ``{"questions": [{"question_id",
      "image_id", "question"}]}`` and ``answers`` with ``{"annotations": [{"question_id",
      "answers": [{"answer"}]}]}``. COCO's images are found by number, anywhere below ``images``.
    - GQA: ``{ID: {"imageId", "question", "answer"}}``.
    - VizWiz, a JSON list, or JSON lines, of ``{"image", "question", "answers": [...]}``; answers
      are texts or ``{"answer"}``, and the list may also be called ``answer``.

    An annotator's answer may be blank.

    Args:
        data: the file of the questions.
        images: the folder that image names are relative to; None for the file's own.
        answers: the file of the answers, if they stand in one of their own.

    Returns:
        Questions in the file's order; the id is the file's, or the image with the question.

    Raises:
        InputError: naming the record, the field and the fix.
    """
    folder = data.parent if images is None else images
    found = read_file(data)
    if isinstance(found, Record) and "questions" in found:
        if answers is None:
            raise found.error("the answers of VQA stand in a second file: give it with --answers")
        rows = _vqa(found.records("questions"), answers, folder)
    elif answers is not None:
        raise InputError(f"{data} holds its own answers: leave --answers out")
    elif isinstance(found, Record) and "image" not in found:
        rows = _gqa(found, folder)
    else:
        rows = _listed(found if isinstance(found, list) else [found], folder)
    return distinct(_enough(rows))


Row = tuple[str, str, Question]


def _vqa(questions: list[Record], answers: Path, images: Path) -> list[Row]:
    found = read_file(answers)
    if isinstance(found, list):
        raise InputError(f'{answers} is no file of VQA annotations: give {{"annotations": [...]}}')
    annotations = distinct(
        (entry.key("question_id"), entry.where, entry) for entry in found.records("annotations")
    )
    by_question = {entry.key("question_id"): entry for entry in annotations}
    names = ((_COCO_NAME.fullmatch(path.name), path) for path in sorted(images.rglob("*.*")))
    paths = {int(match[1]): path for match, path in names if match}
    rows = []
    for entry in questions:
        key, number = entry.key("question_id"), entry.key("image_id")
        if key not in by_question:
            raise entry.error(f"no answer to question {key} in {answers}: give its split's file")
        if not number.isdecimal() or int(number) not in paths:
            raise entry.error(
                f"no image COCO_..._{number:0>12}.jpg or {number:0>12}.jpg below {images}: "
                "give the folder of COCO's images with --images"
            )
        given = by_question[key].texts("answers", "answer", blank=True)
        question = Question(key, paths[int(number)], entry.text("question"), given)
        rows.append((key, entry.where, question))
    return rows


def _gqa(found: Record, images: Path) -> list[Row]:
    rows = []
    for key, value in found.fields.items():
        entry = Record(f"{found.where}, {key!r}", value if isinstance(value, dict) else {})
        if not isinstance(value, dict) or "imageId" not in value:
            raise entry.error(
                "these are no questions: give VQA's or GQA's JSON, or JSON lines of "
                '{"image": NAME, "question": TEXT, "answers": [...]}'
            )
        path = find_image(entry, images, [f"{entry.key('imageId')}.jpg"])
        question = Question(key, path, entry.text("question"), (entry.text("answer"),))
        rows.append((key, entry.where, question))
    return rows


def _listed(records: list[Record], images: Path) -> list[Row]:
    rows = []
    for record in records:
        name, text = record.text("image"), record.text("question")
        field = next((f for f in ("question_id", "id") if f in record), None)
        key = f"{name} {text}" if field is None else record.key(field)
        given = record.texts("answers" if "answers" in record else "answer", "answer", True)
        path = find_image(record, images, [name])
        rows.append((key, record.where, Question(key, path, text, given)))
    return rows


def _enough(rows: list[Row]) -> list[Row]:
    """Check that one metric fits all: exact match for one answer, VQA accuracy for 4 or more."""
    several = len(rows[0][2].answers) > 1 if rows else False
    for _, where, question in rows:
        count = len(question.answers)
        if several and count < 4:
            raise InputError(
                f"{where}: 'answers' holds {count}, VQA accuracy needs those of 4 annotators or "
                "more: add answers, or give one answer to every question for exact match"
            )
        if not several and count > 1:
            raise InputError(
                f"{where}: 'answers' holds {count}, but the first question has only one: "
                "give one answer to every question, or 4 or more"
            )
    return rows
