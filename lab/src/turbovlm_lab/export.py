"""Write scenes as standard files: ``python -m turbovlm_lab.export FOLDER --scenes 500``.

With them every evaluation can be tried without a download: captions and retrieval
(``captions.json`` in COCO's layout, ``captions.jsonl``), questions (``vqa_questions.json`` and
``vqa_annotations.json`` in VQAv2's) and pairs (``nlvr2.jsonl`` in NLVR2's), beside the images. The
same scenes give the same files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import Progress

from turbovlm.errors import InputError, TurboError
from turbovlm_lab import options
from turbovlm_lab.grammar import describe
from turbovlm_lab.lettering import word_question, worded_scene
from turbovlm_lab.pairs import FEWEST_SCENES, group
from turbovlm_lab.questions import ask
from turbovlm_lab.scenes import Object, layout, scene, seed_of_split

POOL = 64  # scenes that the pairs of a statement are chosen from, at most
ANNOTATORS = 10
_TYPES = {"presence": "yes/no", "count": "number"}
_SCENES_PER_STATEMENT = 8  # it has four pairs: in all as many images as scenes


def export(
    folder: Path,
    scenes: int,
    name: str = "test",
    report: Callable[[float], None] = lambda _: None,
    *,
    words: bool = False,
) -> None:
    """Write the first ``scenes`` scenes of a split, and all that is asked and said about them.

    Args:
        folder: new, or empty.
        scenes: how many, at least 8.
        name: of the split: test, validation or train.
        report: called with the share done.
        words: print a word into most of the scenes, and ask for it. Pairs are without.

    Raises:
        InputError: if the folder has content, or for fewer scenes.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} has content, which is never overwritten: give a new folder")
    if scenes < FEWEST_SCENES:
        raise InputError(f"pairs need at least {FEWEST_SCENES} scenes, got {scenes}: ask for more")
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [seed_of_split(name, index) for index in range(scenes)]
    objects = [layout(seed) for seed in seeds]
    asked = [[question[:3] for question in ask(o, s)] for o, s in zip(objects, seeds, strict=True)]
    statements = list(_statements(objects))
    pairs = [(file, seeds[place]) for *_, both in statements for file, place in both]
    for index, seed in enumerate(seeds):
        drawn = worded_scene(seed) if words else scene(seed)
        Image.fromarray(drawn.image).save(folder / _file(index), compress_level=1)
        if words:
            asked[index].append(word_question(drawn.word))
        report((index + 1) / (scenes + len(pairs)))
    for index, (file, seed) in enumerate(pairs, start=1):
        Image.fromarray(scene(seed).image).save(folder / file, compress_level=1)
        report((scenes + index) / (scenes + len(pairs)))
    captions = [describe(items) for items in objects]
    _json(folder / "captions.json", _coco(captions))
    _lines(
        folder / "captions.jsonl",
        ({"image": _file(i), "captions": [text]} for i, text in enumerate(captions)),
    )
    questions, annotations = _vqa(asked)
    _json(folder / "vqa_questions.json", questions)
    _json(folder / "vqa_annotations.json", annotations)
    _lines(
        folder / "nlvr2.jsonl",
        (
            {"identifier": identifier, "sentence": sentence, "label": str(label)}
            for identifier, sentence, label, _ in statements
        ),
    )


def _file(index: int) -> str:
    """The image of a scene: VQAv2 gives its number alone, and COCO names files by it."""
    return f"{index:012d}.png"


def _coco(captions: Sequence[str]) -> dict[str, Any]:
    images = [{"id": i, "file_name": _file(i)} for i in range(len(captions))]
    said = [{"id": i, "image_id": i, "caption": text} for i, text in enumerate(captions)]
    return {"images": images, "annotations": said}


def _vqa(
    asked: Sequence[Sequence[tuple[str, str, str]]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """From text, answer and topic of the questions about each scene."""
    questions, annotations = [], []
    for index, some in enumerate(asked):
        for number, (text, answer, topic) in enumerate(some):
            ids = {"image_id": index, "question_id": index * 10 + number}
            questions.append({**ids, "question": text})
            answers = [
                {"answer": answer, "answer_confidence": "yes", "answer_id": n}
                for n in range(1, ANNOTATORS + 1)
            ]
            annotations.append(
                {
                    **ids,
                    "question_type": topic,
                    "answer_type": _TYPES.get(topic, "other"),
                    "multiple_choice_answer": answer,
                    "answers": answers,
                }
            )
    return {"questions": questions}, {"annotations": annotations}


def _statements(
    objects: Sequence[Sequence[Object]],
) -> Iterable[tuple[str, str, bool, list[tuple[str, int]]]]:
    """Identifier, statement and label, and the file and scene of its two images."""
    for number in range(len(objects) // _SCENES_PER_STATEMENT):
        first = min(number * _SCENES_PER_STATEMENT, max(len(objects) - POOL, 0))
        made = group(objects[first : first + POOL], number)
        for place, pair in enumerate(made.pairs):
            # split, set of pairs, pair, statement: those of a statement differ in the pair alone
            stem = f"test-{number}-{place}"
            both = [
                (f"{stem}-img0.png", first + pair.left),
                (f"{stem}-img1.png", first + pair.right),
            ]
            yield f"{stem}-0", made.statement, pair.label, both


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m turbovlm_lab.export``."""
    parser = argparse.ArgumentParser(prog="python -m turbovlm_lab.export", description=__doc__)
    parser.add_argument("folder", type=Path, help="new, or empty")
    parser.add_argument("--scenes", type=options.positive_count, default=500, help="how many")
    parser.add_argument("--split", default="test", choices=("test", "validation", "train"))
    parser.add_argument(
        "--words", action="store_true", help="print words into the scenes, and ask for them"
    )
    given = parser.parse_args(arguments)
    try:
        with Progress() as bar:
            task = bar.add_task("images", total=1.0)
            export(
                given.folder,
                given.scenes,
                given.split,
                lambda done: bar.update(task, completed=done),
                words=given.words,
            )
    except TurboError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
