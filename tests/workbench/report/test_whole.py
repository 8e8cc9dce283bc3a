"""The report of several results: sections, verdict, bad files, and the page in a browser."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.workbench.report.browser import needs_browser, seen_at
from tests.workbench.report.make import report, sample
from tests.workbench.report.test_generation import comparison
from tests.workbench.report.test_maps import maps
from tests.workbench.report.test_page import Outline
from turbovlm.config import Merge
from turbovlm.errors import InputError
from turbovlm_workbench.analyze.encoder import Analysis, BlockNumbers
from turbovlm_workbench.analyze.language import LanguageAnalysis, LayerNumbers
from turbovlm_workbench.compare.sweep import Sweep
from turbovlm_workbench.report.generation import picture_page
from turbovlm_workbench.report.maps import map_strip, picture_uri
from turbovlm_workbench.report.marked import marked_words
from turbovlm_workbench.report.page import bench_page
from turbovlm_workbench.report.trade import pareto, trade_points
from turbovlm_workbench.report.whole import LARGEST, read_sections, report_page
from turbovlm_workbench.studies.arm import Shape
from turbovlm_workbench.studies.run import Ablation, ArmResult, StudyResult
from turbovlm_workbench.tasks.classification import ACCURACY, KL

WIDTHS = (360, 1100, 1200)


def analysis() -> dict[str, Any]:
    def side(tokens: float, error: float | None) -> tuple[BlockNumbers, ...]:
        return tuple(
            BlockNumbers(b, 0.3, 0.5 + b / 20, tokens - b, error, 0.25) for b in range(1, 5)
        )

    sides = {"unmerged": side(201, None), "turbo r=8": side(150.5, 0.25)}
    found = Analysis("timm:<x>", "ViT", "cls", 9, Merge(r=8), sides, {"cpu": "a cpu"})
    layers = tuple(LayerNumbers(n, 0.4, 0.6, 0.3) for n in range(1, 4))
    inside = LanguageAnalysis("timm:<x>", "Llama", 9, 576.0, layers, {"cpu": "a cpu"})
    return {
        "kind": "analyze", "command": "turbovlm analyze x --images y",
        "encoder": found.to_dict(), "language": inside.to_dict(),
    }  # fmt: skip


def ablation() -> dict[str, Any]:
    gaps = {"accuracy": (-0.1, -0.2, 0.0)}
    arms = tuple(
        ArmResult(f"arm {n}", float(n), "S1", (38.2, 130.0), f"Merge(r={n})", 90, 1 + n / 5,
                  {"accuracy": 0.9 - n / 50, "kl": 0.01 * n}, gaps | {"kl": (0.01 * n, 0.0, 0.1)},
                  {"kl": (0.01 * n - 0.02, -0.03, 0.05)} if n != 2 else {})
        for n in range(5)
    )  # fmt: skip
    ours = tuple(dataclasses.replace(arm, published=()) for arm in arms)
    studies = (
        StudyResult(
            "components", "which part", "Table 8", ("B@4", "CIDEr"), "", None, "arm 2", arms
        ),
        StudyResult("five-percent", "the fastest", "", (), "drop ratio", 0.05, "arm 2", ours),
    )
    whole = {"accuracy": 0.9, "kl": 0.0}
    found = Ablation("m", "classification", 100, Shape(12, 197, 1), 1.26, (ACCURACY, KL), whole,
                     studies, {"cpu": "a cpu"})  # fmt: skip
    return {"kind": "ablate", "command": "turbovlm ablate m", **found.to_dict()}


def shown() -> dict[str, Any]:
    words = {"unmerged": "a red dog", "turbo": "a red <cat>"}
    strip = picture_uri(map_strip(maps()))
    return {
        "kind": "show", "command": "turbovlm show m dog.jpg", "model": "m",
        "pictures": [{"name": "dog.jpg", "words": words, "strip": strip}],
    }  # fmt: skip


def tuned() -> dict[str, Any]:
    trial = {
        "stage": "ladder", "name": "turbo r=4", "merge": {"kind": "merge", "r": 4}, "drift": 0.01,
        "loss": {"mean": 0.004, "error": 0.001, "images": 40, "bound": 0.009}, "quality": {},
    }  # fmt: skip
    chosen = trial | {"stage": "validation"}
    return {
        "model": "m", "task": "classification", "max_loss": 0.01,
        "loss": dataclasses.asdict(report().loss), "chosen": chosen, "trials": [trial, chosen],
        "speedup": {"value": 1.31, "low": 1.25, "high": 1.36}, "environment": {"cpu": "a cpu"},
    }  # fmt: skip


def evaluated() -> dict[str, Any]:
    return {
        "task": "vqa", "model": "m", "merge": {"kind": "merge", "r": 16}, "examples": 50,
        "metrics": {"vqa": 0.75}, "intervals": {"vqa": [0.7, 0.8]}, "environment": {"cpu": "a"},
    }  # fmt: skip


RESULTS: dict[str, Any] = {
    "bench": lambda: report().to_dict(),
    "sweep": lambda: Sweep.of(report()).to_dict(),
    "tune": tuned,
    "eval": evaluated,
    "analyze": analysis,
    "ablate": ablation,
    "show": shown,
}


def page_of(tmp_path: Path, *kinds: str) -> str:
    sections = []
    for kind in kinds:
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps(RESULTS[kind]()))
        sections.append(read_sections([path])[0])
    return report_page(sections, "A title")


@pytest.mark.parametrize("kind", RESULTS)
def test_every_result_is_a_page_of_its_own(tmp_path: Path, kind: str) -> None:
    text = page_of(tmp_path, kind)
    outline = Outline(text)
    assert outline.open == []
    assert not {"script", "link", "iframe"} & outline.tags.keys()
    sources = [source for source in outline.sources if not source.startswith("#")]
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "<title>A title</title>" in text
    assert f"<h2>{kind}: " in text or kind == "eval"


def test_the_verdict_of_the_page_is_that_of_the_most_telling_result(tmp_path: Path) -> None:
    text = page_of(tmp_path, *RESULTS)
    assert text.count('<section id="s') == len(RESULTS)
    assert (
        '<p class="advice">turbo r=4 keeps the promise of 1 % and has 1.31x [1.25, 1.36] the speed '
        "of the unmerged model.</p>"
    ) in text
    for words in (
        "turbovlm analyze x --images y", "a cpu", "timm:&lt;x&gt;",
        '<span class="changed">&lt;cat&gt;</span>', "0 of 1 outputs stay", "paper: CIDEr",
        "KL to base [95 %]", "0.0100 [0.0000, 0.1000]", "-0.0100 [-0.0300, +0.0500]",
        'data-title="KL to base [95 %]">base</td>',
        "within 5% of the unmerged accuracy: S1 1.40x", "vqa 0.7500 [0.7000, 0.8000]",
    ):  # fmt: skip
        assert words in text
    assert len(text.encode()) < LARGEST


def test_the_front_holds_what_none_beats() -> None:
    rows = report().to_dict()["rows"]
    points = trade_points(rows, ACCURACY)
    assert [p.line for p in points] == ["unmerged", "turbo", "turbo", "random", "random"]
    assert [p.name for p in pareto(points, ACCURACY)] == ["turbo r=4", "turbo r=8"]
    drift = [dataclasses.replace(p, quality=1 - p.quality) for p in points]
    assert [p.name for p in pareto(drift, KL)] == ["turbo r=4", "turbo r=8"]


def test_words_that_changed_are_marked() -> None:
    assert marked_words("a dog on the grass", "a cat on grass") == [
        ("a", False), ("cat", True), ("on", False), ("grass", False),
    ]  # fmt: skip
    assert marked_words("same words", "same words") == [("same words", False)]
    assert marked_words("a", "") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read the result"),
        ("[]", "is no result of bench"),
        ('{"kind": "unknown"}', "is no result of bench"),
        ('{"kind": "show", "pictures": [{"name": "x"}]}', "is no whole result of turbovlm show"),
        ('{"rows": [], "advice": ""}', "is no whole result of turbovlm bench"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_sections([path])
    with pytest.raises(InputError, match="cannot read the result"):
        read_sections([tmp_path / "gone.json"])


def test_a_page_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "show.json"
    data = shown()
    data["pictures"] *= 1 + LARGEST // len(data["pictures"][0]["strip"])
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"the page would have 3\.\d MB, more than 3"):
        report_page(read_sections([path]), "x")


def pages(tmp_path: Path) -> dict[str, str]:
    """Every page that the workbench writes."""
    found = comparison(1.21, 1.44)
    said = {s.name: ["a red circle", "something"] for s in found.sides}
    right = {s.name: 0.5 for s in found.sides}
    return {
        "report": page_of(tmp_path, *RESULTS),
        "bench": bench_page(report(), [sample(), sample("a dog")], "turbo r=8"),
        "generation": picture_page(found, "a title", said, right),
    }


@needs_browser
@pytest.mark.parametrize("name", ["report", "bench", "generation"])
def test_pages_fit_in_a_browser(tmp_path: Path, name: str) -> None:
    page = pages(tmp_path)[name]
    for width in WIDTHS:
        seen = seen_at(page, width, tmp_path)
        assert seen.errors == []
        assert seen.broken == 0
        assert seen.width <= width, f"{name} overflows at {width} pixels"
        assert max(seen.inner) <= 0, f"a table of {name} overflows at {width} pixels"
        assert seen.height > 900
