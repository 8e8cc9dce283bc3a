"""Files of records: JSON, JSON lines, and errors that name the place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.workbench.data.files import lines, touch, write
from turbovlm.errors import InputError
from turbovlm_workbench.data.records import Record, distinct, find_image, read_file, record_list


def test_json_and_json_lines_whatever_the_ending(tmp_path: Path) -> None:
    values = [{"a": 1}, {"a": 2}]
    for name in ("x.jsonl", "x.json"):
        found = record_list(lines(tmp_path / name, *values))
        assert [r.fields for r in found] == values
        assert [r.where for r in found] == [f"{tmp_path / name}, line {n}" for n in (1, 2)]
    found = record_list(write(tmp_path / "list.json", values))
    assert [r.fields for r in found] == values
    assert found[1].where == f"{tmp_path / 'list.json'}[1]"
    one = read_file(write(tmp_path / "one.json", {"a": 1}))
    assert one == Record(str(tmp_path / "one.json"), {"a": 1})
    assert record_list(lines(tmp_path / "one.jsonl", {"a": 1}))[0].fields == {"a": 1}
    assert len(record_list(write(tmp_path / "one.json", {"a": 1}))) == 1


def test_blank_lines_a_mark_and_separators_in_texts(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    text = '\ufeff{"a": "one\u2028line"}\r\n\r\n{"a": "two"}'
    path.write_text(text, encoding="utf-8", newline="")
    found = record_list(path)
    assert [r.fields["a"] for r in found] == ["one\u2028line", "two"]
    assert found[1].where.endswith("line 3")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": \n', r"x\.jsonl, line 2: no JSON \(.*\): give one object"),
        ("x.json", '{"a": 1}\n{"a": \n', r"x\.json, line 2: no JSON"),
        ("x.jsonl", '{"a": 1}\n[2]\n', r"line 2: \[2\] is no JSON object"),
        ("x.jsonl", "\n\n", r"x\.jsonl is empty"),
        ("x.json", '{"a": 1,\n "b": 2', r"x\.json is no JSON: .*line 2 column 8.*: repair it"),
        ("x.json", "a,b\n1,2", r"x\.json is no JSON"),
        ("x.json", '[{"a": 1}, 5]', r"x\.json\[1\]: 5 is no JSON object"),
        ("x.json", "[]", r"x\.json holds \[\]: give a JSON object or a list"),
        ("x.json", "{}", r"x\.json holds \{\}"),
        ("x.json", '"a long text that takes more than forty letters"', r"holds \"a long .*\.\.\.:"),
    ],
)
def test_files_that_are_no_records(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_file(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json does not exist: give the file"):
        read_file(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder: give the file of annotations"):
        read_file(tmp_path)
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"cannot read .*x\.json .*: give a JSON file in UTF-8"):
        read_file(tmp_path / "x.json")


RECORD = Record(
    "f.jsonl, line 4",
    {
        "text": " a ",
        "blank": " ",
        "number": 7,
        "flag": True,
        "texts": ["a", "b"],
        "answers": [{"answer": "yes"}, "no", {"answer": ""}],
        "wrong": ["a", 3],
        "empty": [],
        "objects": [{"x": 1}, 2],
    },
)


def test_fields() -> None:
    assert RECORD.text("text") == " a "
    assert RECORD.key("number") == "7"
    assert RECORD.key("text") == " a "
    assert RECORD.texts("texts") == ("a", "b")
    assert RECORD.texts("answers", "answer", blank=True) == ("yes", "no", "")
    assert "text" in RECORD
    assert "more" not in RECORD


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("text", ["none"], "there is no 'none', only text, blank, .*: add it"),
        ("text", ["blank"], "'blank' must be a text that is not blank, got \" \": correct it"),
        ("text", ["number"], "'number' must be a text .*, got 7"),
        ("key", ["flag"], "'flag' must be a text .*, got true"),
        ("texts", ["text"], "'text' must be a list, got \" a \""),
        ("texts", ["wrong"], r"'wrong\[1\]' must be a text that is not blank, got 3"),
        ("texts", ["empty"], "'empty' is empty: give one or more"),
        (
            "texts",
            ["answers", "answer"],
            r"'answers\[2\]\.answer' must be a text that is not blank",
        ),
        ("texts", ["objects", "y", True], r"'objects\[0\]\.y' must be a text, got null"),
        ("records", ["objects"], r", objects\[1\]: 2 is no JSON object"),
        ("records", ["empty"], "'empty' is empty"),
        ("records", ["number"], "'number' must be a list, got 7"),
    ],
)
def test_wrong_fields_are_named(method: str, arguments: list[object], message: str) -> None:
    with pytest.raises(InputError, match=rf"^f\.jsonl, line 4.*{message}"):
        getattr(RECORD, method)(*arguments)


def test_the_same_id_twice_names_both_places() -> None:
    assert distinct([("a", "line 1", 1), ("b", "line 2", 2)]) == [1, 2]
    with pytest.raises(InputError, match="line 3 and line 1 are both 'a': keep one of them"):
        distinct([("a", "line 1", 1), ("b", "line 2", 2), ("a", "line 3", 3)])


def test_images_are_looked_for_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b/x.jpg", "x.jpg")
    assert find_image(RECORD, tmp_path, ["a/x.jpg", "b/x.jpg", "x.jpg"]) == tmp_path / "b/x.jpg"
    message = rf"line 4: no image y \(nor b/y\) in {re.escape(str(tmp_path))}: add .*--images"
    with pytest.raises(InputError, match=message):
        find_image(RECORD, tmp_path, ["y", "b/y", "y"])
    with pytest.raises(InputError, match="no image zz"):
        find_image(RECORD, tmp_path, ["z" * 5000])
    with pytest.raises(InputError, match="no image b in"):  # a folder
        find_image(RECORD, tmp_path, ["b"])


def test_errors_are_short(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", [{"a": 1}, ["long"] * 1000])
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert len(str(caught.value)) < len(json.dumps(str(path))) + 100


@pytest.mark.parametrize("name", ["deep.json", "deep.jsonl"])
def test_json_beyond_pythons_depth_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(InputError, match="nested too deeply"):
        read_file(tmp_path / name)


def test_a_name_that_stands_twice_in_an_object(tmp_path: Path) -> None:
    (tmp_path / "twice.jsonl").write_text('{"image": "a.png", "answer": "yes", "answer": "no"}')
    with pytest.raises(InputError, match=r"line 1: no JSON \(an object has 'answer' twice"):
        read_file(tmp_path / "twice.jsonl")
