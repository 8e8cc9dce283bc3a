from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workbench.scale.make import parquet
from turbovlm.errors import ConfigError, InputError
from turbovlm_workbench.scale import source
from turbovlm_workbench.scale.source import (
    Piece,
    count_listing,
    open_source,
    read_listing,
    write_listing,
)


def files(folder: Path, names: dict[str, bytes]) -> Path:
    for name, data in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_is_cut_by_number_and_by_bytes_in_one_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"b.png": b"12", "a/z.JPG": b"345", "c.png": b"6" * 50, "d.txt": b"", "a/y.png": b""}
    folder = files(tmp_path, names)
    monkeypatch.setattr(source, "BYTES", 20)
    parts = list(open_source(folder, most=2).parts())
    assert parts == [
        [Piece("b.png", 0, 1, 2)],
        [Piece("c.png", 0, 1, 50)],
        [Piece("a/y.png", 0, 1, 0), Piece("a/z.JPG", 0, 1, 3)],
    ]
    found = [p for part in parts for p in open_source(folder).pictures(part)]
    assert [(p.id, p.data, p.error) for p in found][-1] == ("a/z.JPG", b"345", None)


def test_what_cannot_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    folder = files(tmp_path, {"a.png": b"1"})
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    opened = open_source(folder)
    (part,) = opened.parts()
    assert [piece.size for piece in part] == [1, -1, 0]
    good, gone, pipe = opened.pictures(part)
    assert good.data == b"1"
    assert gone.data is None
    assert gone.error is not None
    assert "No such file" in gone.error
    assert pipe.error is not None
    assert "not a regular file" in pipe.error


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("group", [3, 7, 100])
def test_rows_of_parquet_each_come_once(tmp_path: Path, group: int, nested: bool) -> None:
    pictures = [b"%d" % n for n in range(200)]
    parquet(tmp_path / "one.parquet", pictures[:140], group, nested=nested)
    parquet(tmp_path / "two.parquet", [*pictures[140:], None], group, nested=nested)
    opened = open_source(tmp_path, most=10)
    parts = list(opened.parts())
    sizes = [sum(piece.pictures for piece in part) for part in parts]
    assert max(sizes) <= 10
    assert len(sizes) < 40, "small row groups are put together"
    found = [p for part in parts for p in opened.pictures(part)]
    assert [p.data for p in found] == [*pictures, None]
    assert [p.id for p in found[138:142]] == [
        "one.parquet#138", "one.parquet#139", "two.parquet#0", "two.parquet#1",
    ]  # fmt: skip
    assert found[-1].error == "cannot read image two.parquet#60 (it has no bytes)"


def test_wide_row_groups_are_cut_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BYTES", 5000)
    wide = [os.urandom(1000) for _ in range(20)]
    opened = open_source(parquet(tmp_path / "wide.parquet", wide, 20, nested=False))
    parts = list(opened.parts())
    assert max(part[0].pictures for part in parts) <= 5
    assert [p.data for part in parts for p in opened.pictures(part)] == wide


def test_a_listing_keeps_the_parts(tmp_path: Path) -> None:
    folder = files(tmp_path / "x", {f"{n}.png": b"1" * n for n in range(5)})
    parts = list(open_source(folder, most=2).parts())
    path = tmp_path / "listing.parquet"
    write_listing(iter(parts), path)
    assert [read_listing(path, number) for number in range(3)] == parts
    assert count_listing(path) == [2, 2, 1]


def test_data_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone does not exist: give a folder"):
        open_source(tmp_path / "gone")
    with pytest.raises(InputError, match=r"a\.csv is no \.parquet"):
        open_source(files(tmp_path, {"a.csv": b""}) / "a.csv")
    with pytest.raises(InputError, match="--column goes with Parquet"):
        open_source(tmp_path, "image")
    with pytest.raises(ConfigError, match="--part must be at least 1, got 0"):
        open_source(tmp_path, most=0)
    with pytest.raises(InputError, match="holds no image: expected files ending in"):
        list(open_source(tmp_path).parts())
    pq.write_table(pa.table({"text": ["a"], "other": [1]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="no column 'image', only text, other: name the one"):
        list(open_source(tmp_path).parts())
    with pytest.raises(InputError, match=r"'text' of .* holds string, no bytes of image files"):
        list(open_source(tmp_path, "text").parts())
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="Parquet files without rows"):
        list(open_source(tmp_path).parts())
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=r"cannot read .*t\.parquet .*: repair it"):
        list(open_source(tmp_path).parts())
