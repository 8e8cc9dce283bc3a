"""Tables, grid and page of pictures, from a comparison with round numbers."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.workbench.report.test_page import Outline
from turbovlm.config import MergeRestore
from turbovlm.measure.speed import Ratio
from turbovlm_workbench.generation.compare import Comparison, Side, restore_title
from turbovlm_workbench.report.generation import (
    HEADERS,
    WHITE,
    fastest,
    grid,
    heat,
    picture_cells,
    picture_notes,
    picture_page,
    picture_table,
    picture_verdict,
)

PROMPTS = ("a red circle", 'a <b>"blue"</b> star')


def side(merge: MergeRestore | None, speed: float, level: int) -> Side:
    return Side(
        name="unmerged" if merge is None else restore_title(merge),
        merge=merge,
        pictures=tuple(Image.new("RGB", (16, 16), (level, 0, 0)) for _ in PROMPTS),
        seconds=2.0 / speed,
        speedup=Ratio(speed, speed - 0.05, speed + 0.05),
        gmacs=4.0 / speed**0.5,
        difference=level / 3,
        psnr=20.0 if level else None,
    )


def comparison(*speeds: float, **changes: Any) -> Comparison:
    merges = [MergeRestore(ratio=0.1 * (1 + index)) for index in range(len(speeds))]
    merged = [side(m, speed, 30) for m, speed in zip(merges, speeds, strict=True)]
    merged.append(side(MergeRestore(ratio=0.7, method="random"), 3.0, 60))
    values: dict[str, Any] = {
        "model": "some/model",
        "prompts": PROMPTS,
        "seeds": (0, 1),
        "size": (16, 16),
        "rounds": 8,
        "dtype": "float32",
        "sides": (side(None, 1.0, 0), *merged),
        "environment": {"cpu": "a processor", "threads": 2, "device": "cpu"},
    }
    return Comparison(**{**values, **changes})


def test_every_side_is_a_row_and_numbers_are_whole() -> None:
    found = comparison(1.21, 1.44)
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(picture_table(found))
    rows = console.export_text().splitlines()
    assert rows[0].split() == " ".join(HEADERS).split()
    assert rows[1].split() == ["unmerged", "4", "1.00x", "2", "1.00x"]
    assert rows[2].split() == [
        "turbo", "10", "%", "3.636", "1.10x", "1.65", "1.21x", "[1.16,", "1.26]", "10.00",
        "20.0", "dB",
    ]  # fmt: skip
    assert len(rows) == 5
    equal = side(MergeRestore(ratio=0.0), 1.0, 0)
    assert picture_cells(found, equal)[-1] == "equal"
    assert "95 % interval" in picture_notes(found)[3]
    assert "lowest, highest" in picture_notes(comparison(1.2, rounds=3))[3]


def test_the_verdict_names_the_fastest_of_the_first_method_or_none() -> None:
    found = comparison(1.21, 1.44)
    assert fastest(found).name == "turbo 20 %"  # random is faster, and there to compare
    assert picture_verdict(found) == (
        "turbo 20 % draws 1.44 times as fast, where operations allow 1.20; its pictures differ "
        "by 10.00 of 255 levels."
    )
    assert picture_verdict(comparison(0.98)).startswith("No setting is faster here")
    same = tuple(dataclasses.replace(side, gmacs=4.0) for side in found.sides)
    assert picture_verdict(comparison(1.21, sides=same)).startswith("Nothing was merged")


def test_heat_is_black_where_nothing_differs() -> None:
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (WHITE,) * 3)
    assert not heat(grey, grey).any()
    assert heat(black, grey).min() > 150
    half = Image.new("RGB", (4, 4), (WHITE // 2,) * 3)
    assert 0 < heat(black, half).mean() < heat(black, grey).mean()


def test_the_grid_shows_every_picture_in_its_own_pixels() -> None:
    large = tuple(Image.effect_noise((400, 400), 80).convert("RGB") for _ in PROMPTS)
    sides = [side(None, 1.0, 0), side(MergeRestore(ratio=0.3), 1.2, 30)]
    found = comparison(
        sides=tuple(Side(**{**vars(s), "pictures": large}) for s in sides), size=(400, 400)
    )
    with Image.open(io.BytesIO(grid(found))) as image:
        assert image.width >= 3 * 400
        assert image.height >= 2 * 400
        assert np.asarray(image.convert("L")).std() > 20


@pytest.mark.parametrize("prompt", ["a $5 and a $10 note", r"$\frac$", "$$", "100 % $x^$"])
def test_a_prompt_is_no_formula(prompt: str) -> None:
    one = comparison(1.2)
    found = dataclasses.replace(one, prompts=(prompt, *one.prompts[1:]))
    with Image.open(io.BytesIO(grid(found))) as image:
        assert image.format == "PNG"


def test_the_page_needs_nothing_else() -> None:
    found = comparison(1.21, 1.44)
    said = {s.name: ["a red circle", "something"] for s in found.sides}
    right = {s.name: 0.5 + 0.1 * index for index, s in enumerate(found.sides)}
    text = picture_page(found, "a title", said, right)
    outline = Outline(text)
    assert outline.open == []
    assert outline.tags["img"] == 2 * (1 + 2 * 3)
    assert all(source.startswith("data:image/") for source in outline.sources)
    assert "a &lt;b&gt;&#34;blue&#34;&lt;/b&gt; star" in text
    assert text.count("all as told") == 4 + 1  # the first prompt of every side, and the note
    for words in ("1.44x", "measured speed, turbo 20 %", "50 % → 70 %", "70.0 %", "a processor"):
        assert words in text


def test_a_missing_extra_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from turbovlm.errors import MissingExtra

    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(MissingExtra, match=r"matplotlib.*turbovlm\[report\]"):
        grid(comparison(1.2))
