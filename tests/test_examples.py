"""The examples run as they are printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from turbovlm_lab.grammar import parse
from turbovlm_lab.scenes import scene, seed_of_split

EXAMPLES = Path(__file__).parent.parent / "examples"


def printed(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_captioner_example() -> None:
    out = printed("captioner.py")
    lines = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    assert lines["unmerged"].strip() == lines["truth"].strip()
    assert "(189, 181, 173, 165, 157, 149, 141, 133)" in out


def test_question_example() -> None:
    answers = [line.split("  ")[1] for line in printed("question.py").splitlines() if "?" in line]
    assert len(answers) > 2
    for answer in answers:
        truth, unmerged, merged = (part.split(" ", 1)[1] for part in answer.split(", "))
        assert truth == unmerged == merged


def test_classification_example() -> None:
    lines = printed("classification.py").splitlines()
    assert len(lines) == 14
    assert lines[:12] == [
        f"scene {index}: {scene(seed_of_split('test', index)).caption}" for index in range(12)
    ]
    assert lines[12].startswith("r=8: 12 of 12 are the same, tokens (189, ")
    assert lines[13].endswith(", 85, 69)")


def test_classification_of_files(tmp_path: Path) -> None:
    Image.fromarray(scene(seed_of_split("test", 5)).image).save(tmp_path / "one.png")
    sentences = "a small green cross at the top;a large orange circle at the left"
    arguments = ("lab:retrieval", sentences, str(tmp_path / "one.png"))
    lines = printed("classification.py", *arguments).splitlines()
    assert lines[0].endswith("one.png: a large orange circle at the left")


def test_generation_example(tmp_path: Path) -> None:
    lines = printed("generation.py", str(tmp_path / "drawn")).splitlines()
    assert [line.split()[0] for line in lines] == ["prompt", "unmerged", "ratio=0.3"]
    for line in lines[1:]:
        assert parse(line.split("  ", 1)[1].strip()), line
    unmerged, merged = (
        (tmp_path / "drawn" / f"{name}-0.png").read_bytes() for name in ("unmerged", "ratio=0.3")
    )
    assert unmerged != merged


def test_serving_example() -> None:
    lines = printed("serving.py").splitlines()
    assert len(set(lines)) == 4
    assert all(parse(line) for line in lines)


def test_informativity_example() -> None:
    lines = printed("informativity.py").splitlines()
    assert [line.split()[3] for line in lines[1:9]] == [
        "183", "169", "155", "141", "127", "113", "99", "85",
    ]  # fmt: skip
    assert lines[9] == "the first block sees (1, 197, 160)"
