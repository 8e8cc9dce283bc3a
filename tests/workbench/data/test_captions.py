"""Captions in the layouts of COCO, of Karpathy's splits, of BLIP's files, and in JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.workbench.data.files import lines, touch, write
from turbovlm.errors import InputError
from turbovlm_workbench.data import Captioned, read_captions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    touch(tmp_path, "a.jpg", "sub/b.jpg", "pictures/c.jpg", "pictures/val2014/d.jpg")
    return tmp_path


def test_json_lines(folder: Path) -> None:
    rows = [
        {"image": "sub/b.jpg", "captions": ["two", "three"], "more": 1},
        {"image": "a.jpg", "captions": ["one"]},
    ]
    expected = [
        Captioned("sub/b.jpg", folder / "sub/b.jpg", ("two", "three")),
        Captioned("a.jpg", folder / "a.jpg", ("one",)),
    ]
    assert read_captions(lines(folder / "x.jsonl", *rows)) == expected
    assert read_captions(write(folder / "x.json", rows)) == expected
    blip = [{"image": row["image"], "caption": row["captions"]} for row in rows]
    assert read_captions(write(folder / "blip.json", blip)) == expected
    assert read_captions(write(folder / "one.json", rows[0])) == expected[:1]


def test_images_have_a_folder_of_their_own(folder: Path) -> None:
    data = lines(folder / "x.jsonl", {"image": "c.jpg", "captions": ["see"]})
    (found,) = read_captions(data, folder / "pictures")
    assert found == Captioned("c.jpg", folder / "pictures" / "c.jpg", ("see",))
    with pytest.raises(InputError, match=r"line 1: no image c\.jpg in .*: add the image"):
        read_captions(data)


KARPATHY: dict[str, Any] = {
    "dataset": "coco",
    "images": [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "one", "tokens": ["one"]}]},
        {
            "filepath": "val2014",
            "filename": "d.jpg",
            "split": "test",
            "sentences": [{"raw": "A dee.", "tokens": ["a", "dee"]}, {"raw": "Two"}],
        },
        {"filename": "c.jpg", "filepath": "val2014", "split": "test", "sentences": [{"raw": "c"}]},
        {"filename": "none.jpg", "split": "restval", "sentences": []},
    ],
}


def test_karpathy_with_the_test_split_unless_told(folder: Path) -> None:
    data = write(folder / "dataset.json", KARPATHY)
    pictures = folder / "pictures"
    assert read_captions(data, pictures) == [
        Captioned("d.jpg", pictures / "val2014" / "d.jpg", ("A dee.", "Two")),
        Captioned("c.jpg", pictures / "c.jpg", ("c",)),  # not in val2014, but in the folder
    ]
    assert read_captions(data, split="train") == [Captioned("a.jpg", folder / "a.jpg", ("one",))]


COCO: dict[str, Any] = {
    "info": {},
    "images": [{"id": 7, "file_name": "c.jpg"}, {"id": 3, "file_name": "val2014/d.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 3, "caption": "dee"},
        {"id": 2, "image_id": 7, "caption": "see"},
        {"id": 3, "image_id": 3, "caption": "d"},
    ],
}


def test_coco(folder: Path) -> None:
    pictures = folder / "pictures"
    assert read_captions(write(folder / "captions.json", COCO), pictures) == [
        Captioned("c.jpg", pictures / "c.jpg", ("see",)),
        Captioned("val2014/d.jpg", pictures / "val2014" / "d.jpg", ("dee", "d")),
    ]


def coco(**changes: Any) -> dict[str, Any]:
    return COCO | changes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, r"x\.json: these are no captions: give COCO's or Karpathy's JSON, or"),
        ({"images": [{"id": 1, "file_name": "c.jpg"}]}, "these are no captions"),
        ({"images": []}, "'images' is empty"),
        (coco(annotations=COCO["annotations"][:1]), r"images\[0\]: image c\.jpg has no caption"),
        (
            coco(annotations=[{"image_id": 9, "caption": "x"}]),
            r"annotations\[0\]: 'image_id' 9 is no image of this file",
        ),
        (
            coco(annotations=[{"image_id": 3, "bbox": []}]),
            r"annotations\[0\]: there is no 'caption', only image_id, bbox",
        ),
        (
            coco(images=[*COCO["images"], {"id": 7, "file_name": "a.jpg"}]),
            r"x\.json, images\[2\] and .*x\.json, images\[0\] are both '7'",
        ),
        ({"images": [{"filename": "c.jpg", "sentences": []}]}, r"images\[0\]: there is no 'split'"),
        (
            {"images": [{"filename": "c.jpg", "split": "test", "sentences": []}]},
            r"images\[0\]: 'sentences' is empty",
        ),
        (
            {"images": [{"filename": "c.jpg", "split": "test", "sentences": [{"tokens": []}]}]},
            r"images\[0\]: 'sentences\[0\]\.raw' must be a text",
        ),
        (
            {"images": [{"filename": "no.jpg", "split": "test", "sentences": [{"raw": "a"}]}]},
            r"images\[0\]: no image no\.jpg in",
        ),
        ([{"image": "c.jpg", "captions": "one"}], r"x\.json\[0\]: 'captions' must be a list"),
        ([{"image": "c.jpg", "captions": []}], r"x\.json\[0\]: 'captions' is empty"),
        ([{"image": "c.jpg"}], r"x\.json\[0\]: there is no 'captions', only image"),
        ([{"captions": ["a"]}], r"x\.json\[0\]: there is no 'image', only captions"),
        ([{"image": "c.jpg", "captions": ["a", " "]}], r"'captions\[1\]' must be a text"),
        (
            [{"image": "c.jpg", "captions": ["a"]}] * 2,
            r"x\.json\[1\] and .*x\.json\[0\] are both 'c\.jpg': keep one of them",
        ),
    ],
)
def test_wrong_captions_name_the_place(folder: Path, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_captions(write(folder / "x.json", value), folder / "pictures")


def test_a_split_that_is_not_there(folder: Path) -> None:
    data = write(folder / "dataset.json", KARPATHY)
    with pytest.raises(InputError, match="no split 'val': use --split train or test or restval"):
        read_captions(data, split="val")
    other = write(folder / "captions.json", COCO)
    with pytest.raises(InputError, match="has no splits, only Karpathy's files have: leave"):
        read_captions(other, folder / "pictures", split="val")
