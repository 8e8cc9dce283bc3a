"""Records on disk: what a kill leaves is read back, and nobody's files are touched."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from turbovlm.errors import InputError
from turbovlm_workbench.data.predictions import Records, claim, digest

SETTINGS = {"task": "captioning", "merge": {"r": 8}, "size": (1, 2)}


def test_records_come_back_in_order_and_the_last_of_an_id_counts(tmp_path: Path) -> None:
    records = Records(tmp_path, "predictions")
    records.append({"b": {"caption": "zwei\u2028Zeilen"}, "a": {"error": "broken"}})
    records.append({"a": {"caption": "one"}})
    found = {"b": {"caption": "zwei\u2028Zeilen"}, "a": {"caption": "one"}}
    assert records.read() == found
    assert list(records.finish(["a", "b"])) == ["a", "b"]
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").strip().split("\n")
    assert [json.loads(line)["id"] for line in lines] == ["a", "b"]
    assert records.read() == found
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    Records(tmp_path, "images", 0).append({"a": {"x": 1}})
    Records(tmp_path, "images", 1).append({"b": {"x": 2}})
    Records(tmp_path, "captions", 0).append({"c": {"x": 3}})
    assert Records(tmp_path, "images", 1).read() == {"a": {"x": 1}, "b": {"x": 2}}
    Records(tmp_path, "images", 0).finish(["b", "a"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["captions.0.part", "images.jsonl"]


@pytest.mark.parametrize("kept", [0, 1, 10, 19])
def test_a_line_that_a_kill_cut_is_forgotten_and_written_over(tmp_path: Path, kept: int) -> None:
    records = Records(tmp_path, "predictions")
    records.append({"a": {"x": 1}})
    line = b'{"id": "b", "x": 2}\n'
    with records.path.open("ab") as file:
        file.write(line[:kept])
    assert records.read() == {"a": {"x": 1}}
    records.append({"c": {"x": 3}})
    assert records.read() == {"a": {"x": 1}, "c": {"x": 3}}


@pytest.mark.parametrize("line", ["no json", "[1]", '{"x": 1}', '{"id": 4}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    records = Records(tmp_path, "predictions")
    records.append({"a": {"x": 1}})
    with records.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"predictions\.0\.part, line 2 is no record"):
        records.read()


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    claim(out, SETTINGS)
    claim(out, SETTINGS)  # the same run goes on
    with pytest.raises(InputError, match=r"another merge \(merge: \{'r': 8\} there, None now\)"):
        claim(out, {**SETTINGS, "merge": None})
    with pytest.raises(InputError, match="another beams, task"):
        claim(out, {"merge": {"r": 8}, "size": [1, 2], "beams": 3})
    assert json.loads((out / "settings.json").read_text())["merge"] == {"r": 8}


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="holds other files"):
        claim(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="cannot use the folder"):
        claim(tmp_path / "thesis.txt", SETTINGS)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json is no JSON"):
        claim(tmp_path, SETTINGS)


def test_the_digest_knows_order_and_content() -> None:
    assert digest([["a", 1], ["b", 2]]) == digest([["a", 1], ["b", 2]])
    assert digest([["a", 1], ["b", 2]]) != digest([["b", 2], ["a", 1]])
    assert digest([["a", 1]]) != digest([["a", 2]])


def test_names_that_are_no_utf8_come_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    Records(tmp_path, "predictions").append({name: {"caption": "gr\u00fcn"}, "b": {"x": 1}})
    assert Records(tmp_path, "predictions").finish([name, "b"])[name] == {"caption": "gr\u00fcn"}
    assert list(Records(tmp_path, "predictions").read()) == [name, "b"]


def test_records_of_another_basis_do_not_count(tmp_path: Path) -> None:
    records = Records(tmp_path, "predictions")
    records.append({"a": {"x": 1, "basis": "old"}, "b": {"x": 2, "basis": "new"}})
    assert records.read("new") == {"b": {"x": 2, "basis": "new"}}
    records.append({"a": {"x": 3, "basis": "new"}})
    assert records.finish(["a", "b"], "new")["a"] == {"x": 3, "basis": "new"}
    assert records.read("old") == {}


def test_a_file_that_cannot_grow_is_an_error_that_says_what_is_kept(tmp_path: Path) -> None:
    records = Records(tmp_path, "predictions")
    records.append({"a": {"x": 1}})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))  # as a full disk, for this test
    try:
        with pytest.raises(
            InputError, match=r"predictions\.0\.part \(File too large.*goes on from"
        ):
            records.append({"b": {"x": "long" * 20}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert records.read() == {"a": {"x": 1}}
    records.append({"b": {"x": 2}})
    assert records.read() == {"a": {"x": 1}, "b": {"x": 2}}
