"""Statements about pairs in the layouts of NLVR2 and BLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.workbench.data.files import lines, touch, write
from turbovlm.errors import InputError
from turbovlm_workbench.data import Pair, read_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for pair in ("dev-850-0", "dev/dev-850-1", "train/53/train-8-2", "53/train-9-0"):
        touch(tmp_path, f"{pair}-img0.png", f"{pair}-img1.png")
    return tmp_path


def entry(identifier: str, label: Any = "True", **more: Any) -> dict[str, Any]:
    return {"identifier": identifier, "sentence": "Two dogs.", "label": label} | more


def test_nlvr2_in_every_folder_of_the_data_set(folder: Path) -> None:
    rows = [
        entry("dev-850-0-1"),
        entry("dev-850-1-1", "False", left_url="http"),
        entry("train-8-2-0", directory=53),
        entry("train-9-0-0", "true", directory=53),
    ]
    found = read_pairs(lines(folder / "dev.json", *rows))
    assert [p.id for p in found] == [r["identifier"] for r in rows]
    assert [p.label for p in found] == [True, False, True, True]
    # pairs of the same set and sentence are a group, whatever their images
    assert [p.group for p in found] == ["dev-850-1", "dev-850-1", "train-8-0", "train-9-0"]
    assert found[0] == Pair(
        "dev-850-0-1",
        folder / "dev-850-0-img0.png",
        folder / "dev-850-0-img1.png",
        "Two dogs.",
        True,
        "dev-850-1",
    )
    assert [p.left.relative_to(folder).as_posix() for p in found[1:]] == [
        "dev/dev-850-1-img0.png",
        "train/53/train-8-2-img0.png",
        "53/train-9-0-img0.png",
    ]


def test_named_images(folder: Path) -> None:
    names = ["dev-850-0-img1.png", "dev-850-0-img0.png"]
    row = {"images": names, "sentence": "A cat.", "label": False}
    expected = Pair(
        "dev-850-0-img1.png dev-850-0-img0.png A cat.",
        folder / names[0],
        folder / names[1],
        "A cat.",
        False,
        "A cat.",
    )
    assert read_pairs(write(folder / "blip.json", [row])) == [expected]
    assert read_pairs(lines(folder / "x.jsonl", row), folder) == [expected]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([entry("dev-850-0")], "line 1: 'identifier' 'dev-850-0' must be split-set-pair-sentence"),
        (
            [entry("dev-850-0-1"), entry("dev-850-0-1")],
            "line 2 and .*line 1 are both 'dev-850-0-1'",
        ),
        ([entry("dev-850-9-1")], r"line 1: no image dev-850-9-img0\.png \(nor dev/dev-850-9-img0"),
        ([entry("train-8-2-0")], r"no image train-8-2-img0\.png"),  # without its directory
        ([entry("dev-850-0-1", "yes")], "line 1: 'label' must be True or False, got 'yes'"),
        ([entry("dev-850-0-1", 1)], "line 1: 'label' must be True or False, got 1"),
        ([entry("dev-850-0-1", None)], "line 1: 'label' must be True or False, got None"),
        ([entry("dev-850-0-1", sentence="")], "line 1: 'sentence' must be a text"),
        ([{"images": ["a"], "sentence": "x", "label": "True"}], "'images' must be left and right"),
        ([{"images": ["a", "b"], "sentence": "x", "label": "True"}], "line 1: no image a in"),
        ([{"sentence": "x"}], "line 1: there is no 'images', only sentence"),
    ],
)
def test_wrong_pairs_name_the_place(folder: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_pairs(lines(folder / "dev.jsonl", *rows))
