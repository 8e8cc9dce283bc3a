"""Labelled images: tables, and folders of classes whose numbers are certain."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.workbench.data.files import touch
from turbovlm.errors import InputError
from turbovlm_workbench.data import Labelled, read_classification
from turbovlm_workbench.data.classes import CLASS_FILES


def labels(folder: Path) -> dict[str, int]:
    return {example.id: example.label for example in read_classification(folder)}


def test_a_table(tmp_path: Path) -> None:
    touch(tmp_path, "pictures/a.jpg", "pictures/sub/b.jpg")
    table = tmp_path / "labels.csv"
    table.write_text("file,label\nsub/b.jpg,7\na.jpg,0\n")
    assert read_classification(table, tmp_path / "pictures") == [
        Labelled("sub/b.jpg", tmp_path / "pictures" / "sub" / "b.jpg", 7),
        Labelled("a.jpg", tmp_path / "pictures" / "a.jpg", 0),
    ]
    table.write_text("file,label\npictures/a.jpg,3\n")
    assert read_classification(table)[0].id == "pictures/a.jpg"
    table.write_text("file,label\npictures/a.jpg,cat\n")
    with pytest.raises(InputError, match=r"line 2: label 'cat' is not a class number"):
        read_classification(table)


def test_a_table_that_lies_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, "tables/near.jpg", "pictures/a.jpg")
    table = tmp_path / "tables" / "labels.csv"
    table.write_text("file,label\nnear.jpg,1\na.jpg,2\n")
    near, far = read_classification(table, tmp_path / "pictures")
    assert (near.id, near.label) == ((tmp_path / "tables" / "near.jpg").as_posix(), 1)
    assert (far.id, far.label) == ("a.jpg", 2)


def test_folders_that_are_numbers(tmp_path: Path) -> None:
    touch(tmp_path, "10/a.jpg", "2/b.JPEG", "2/sub/c.png", "007/d.jpg", "2/notes.txt")
    assert labels(tmp_path) == {"2/b.JPEG": 2, "007/d.jpg": 7, "10/a.jpg": 10, "2/sub/c.png": 2}
    touch(tmp_path, "7/e.jpg")
    with pytest.raises(InputError, match=r"two subfolders of .* are the same number: join them"):
        labels(tmp_path)


def test_images_come_in_turns_from_every_class(tmp_path: Path) -> None:
    touch(tmp_path, "0/a.jpg", "0/b.jpg", "0/c.jpg", "1/z.jpg", "2/x.jpg", "2/y.jpg")
    ids = [example.id for example in read_classification(tmp_path)]
    assert ids == ["0/a.jpg", "1/z.jpg", "2/x.jpg", "0/b.jpg", "2/y.jpg", "0/c.jpg"]


@pytest.mark.parametrize("name", CLASS_FILES)
@pytest.mark.parametrize("place", [".", ".."])
def test_a_file_of_classes(tmp_path: Path, name: str, place: str) -> None:
    root = tmp_path / "val"
    touch(root, "n01443537/a.jpg", "n01440764/b.jpg", "great white shark/c.jpg")
    text = "n01443537 goldfish, Carassius\nn01484850\ngreat white shark\nn01440764 tench\n"
    (root / place / name).write_text(text)
    assert labels(root) == {
        "n01443537/a.jpg": 0,
        "great white shark/c.jpg": 2,
        "n01440764/b.jpg": 3,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog\ncat\n", r"classes\.txt, line 3 and line 1 are both 'cat': keep one"),
        ("cat\n\ndog\n", r"classes\.txt, line 2 is blank"),
        ("cat\n", r"classes\.txt does not name the subfolder dog of"),
    ],
)
def test_wrong_files_of_classes(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "cat/a.jpg", "dog/b.jpg")
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        labels(tmp_path)


def test_all_of_imagenet_needs_no_file_and_a_part_does(tmp_path: Path) -> None:
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    listed = Path(spec.origin).parent / "data" / "_info" / "imagenet_synsets.txt"
    synsets = listed.read_text().split()
    assert len(synsets) == 1000
    for synset in synsets:
        (tmp_path / synset).mkdir()
    touch(tmp_path, f"{synsets[999]}/a.JPEG", f"{synsets[0]}/b.JPEG", f"{synsets[417]}/c.JPEG")
    found = [(example.label, example.id) for example in read_classification(tmp_path)]
    assert found == [(n, f"{synsets[n]}/{x}.JPEG") for n, x in ((0, "b"), (417, "c"), (999, "a"))]
    (tmp_path / synsets[1]).rmdir()
    with pytest.raises(InputError, match=r"its 999 subfolders \(n01440764, ...\) are neither"):
        read_classification(tmp_path)
    (tmp_path / "n99999999").mkdir()  # a thousand again, but others
    with pytest.raises(InputError, match=r"put a classes\.txt into it"):
        read_classification(tmp_path)


def test_names_alone_do_not_number_classes(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg", "dog/b.jpg")
    with pytest.raises(
        InputError, match=r"cannot number .* 2 subfolders \(cat, \.\.\.\) are neither"
    ):
        read_classification(tmp_path)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none does not exist: give a CSV table, or a folder"):
        read_classification(tmp_path / "none")
    with pytest.raises(InputError, match="holds no image"):
        read_classification(tmp_path)
    touch(tmp_path, "0/a.jpg")
    with pytest.raises(InputError, match="is the folder of the images already: leave --images"):
        read_classification(tmp_path, tmp_path)
    touch(tmp_path, "b.jpg")
    with pytest.raises(InputError, match=r"b\.jpg is in no class: give a folder with one"):
        read_classification(tmp_path)
