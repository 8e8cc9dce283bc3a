"""Lists of prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from turbovlm.errors import ConfigError, InputError
from turbovlm_workbench.generation.prompts import imagenet_classes, read_prompts, repeat


def test_text_and_jsonl_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("﻿a cat\n\n  a dog \n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cat", "id": 3}\n{"prompt": "a dog"}\n')
    for name in ("p.txt", "p.jsonl"):
        assert read_prompts(str(tmp_path / name)) == ["a cat", "a dog"]


def test_imagenet_is_two_pictures_of_every_class() -> None:
    names = imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    prompts = repeat(read_prompts("imagenet"), None, "imagenet")
    assert len(prompts) == 2000
    assert prompts[1207] == prompts[207] == "a photo of golden retriever"


def test_a_count_cuts_or_goes_round() -> None:
    assert repeat(["a", "b", "c"], None, "p.txt") == ["a", "b", "c"]
    assert repeat(["a", "b", "c"], 5, "p.txt") == ["a", "b", "c", "a", "b"]
    assert repeat(["a", "b", "c"], 2, "p.txt") == ["a", "b"]
    with pytest.raises(ConfigError, match="--count must be at least 1"):
        repeat(["a"], 0, "p.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", None, r"cannot read the prompts in .*p\.txt"),
        ("p.txt", b"\n \n", "holds no prompt: write one a line"),
        ("p.txt", b"\xff\xfe\x00", "cannot read the prompts"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}', r"p\.jsonl, line 2: no prompt"),
        ("p.jsonl", b'{"prompt": ""}', r"p\.jsonl, line 1: no prompt"),
        ("p.jsonl", b"a cat", r"p\.jsonl, line 1: no prompt"),
        ("p.jsonl", b"[1]", r"p\.jsonl, line 1: no prompt"),
    ],
)
def test_a_list_that_is_none(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(str(tmp_path / name))
