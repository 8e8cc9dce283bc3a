"""Every row of the paper's FLOPs columns: counted, by closed formula, and as the table says."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workbench import build
from tests.workbench.metrics import formulas
from turbovlm.errors import MissingExtra
from turbovlm.measure.flops import flops
from turbovlm_workbench.paper import models
from turbovlm_workbench.paper.count import TOLERANCE, PaperRow, count, count_all
from turbovlm_workbench.paper.table import TABLE, Line, Subject

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")
pytest.importorskip("diffusers")

FORMULAS: dict[str, Callable[[Line], float]] = {
    "NLVR2, BLIP base": lambda line: formulas.nlvr(line.r),
    "VQA, BLIP base": lambda line: formulas.tower("B", 480, line.r),
    "Retrieval, BLIP base": lambda line: formulas.tower("B", 384, line.r),
    "Retrieval, BLIP-2": lambda line: formulas.tower("g", 364, line.r),
    "Caption, BLIP base": lambda line: formulas.blip_caption(line.r, line.steps),
    "Caption, BLIP-2 OPT-2.7B": lambda line: formulas.blip2_caption(line.r, line.steps),
    "VQA, MiniGPT-v2": lambda line: formulas.tower("g", 448, line.r),
    "ImageNet, AugReg ViT-S/16": lambda line: formulas.tower("S", 224, line.r, 1000),
    "ImageNet, AugReg ViT-B/16": lambda line: formulas.tower("B", 224, line.r, 1000),
    "ImageNet, AugReg ViT-L/16": lambda line: formulas.tower("L", 224, line.r, 1000),
    "ImageNet, SWAG ViT-B/16": lambda line: formulas.tower("B", 384, line.r, 1000),
    "ImageNet, SWAG ViT-L/16": lambda line: formulas.tower("L", 512, line.r, 1000),
    "ImageNet, SWAG ViT-H/14": lambda line: formulas.tower("H", 518, line.r, 1000),
    "Generation, Stable Diffusion 1.5": lambda line: formulas.stable_diffusion(line.ratio),
}


def subject(name: str) -> Subject:
    return next(s for s in TABLE if s.name == name)


def test_every_model_has_a_formula() -> None:
    assert [s.name for s in TABLE] == list(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_formula_count_and_table_agree(name: str) -> None:
    lines = subject(name).lines
    rows = list(count(subject(name)))
    document = (Path(__file__).parents[3] / "docs/flops.md").read_text(encoding="utf-8")
    assert [(row.r, row.ratio) for row in rows] == [(line.r, line.ratio) for line in lines]
    for line, row in zip(lines, rows, strict=True):
        formula = FORMULAS[name](line)
        assert formula == pytest.approx(line.exact, rel=TOLERANCE)
        # LayerNorms of poolers and the like aside, formula and counter agree to the last digit
        assert row.computed == pytest.approx(formula, rel=2e-6)
        assert row.equal
        assert f" {row.computed:.3f} " in document
    for row in rows[1:]:
        assert row.ideal == pytest.approx(rows[0].computed / row.computed)
        if row.ratio:
            assert round(row.ideal, 3) == {0.1: 1.045, 0.2: 1.109, 0.3: 1.177}[row.ratio]
        else:
            assert row.ideal > 1.3


def test_a_row_off_the_exact_figure_is_not_equal() -> None:
    row = PaperRow("x", 0, None, 100.0, 100.09, 1.0, None, "", "")
    assert row.equal
    assert row.error == pytest.approx(9e-4)
    for computed in (100.11, 99.89):
        assert not dataclasses.replace(row, computed=computed).equal
    assert row.to_dict()["equal"] is True


def test_a_row_says_what_was_merged() -> None:
    row = PaperRow("x", 0, None, 100.0, 100.0, 1.0, None, "", "")
    assert row.merged == ""
    assert dataclasses.replace(row, r=8).merged == "8"
    assert dataclasses.replace(row, ratio=0.3).merged == "30 %"


def test_progress_names_the_model_and_counts_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    small = (subject("ImageNet, AugReg ViT-S/16"), subject("ImageNet, SWAG ViT-B/16"))
    monkeypatch.setattr("turbovlm_workbench.paper.count.TABLE", small)
    told: list[tuple[str, int, int]] = []
    rows = count_all(lambda *news: told.append(news))
    assert [row.name for row in rows] == [s.name for s in small for _ in s.lines]
    assert [done for _, done, _ in told] == [0, 1, 2, 2, 3, 4]
    assert {total for _, _, total in told} == {4}
    assert told[0][0] == small[0].name


def test_nothing_is_in_memory() -> None:
    with torch.device("meta"):
        model = subject("Caption, BLIP-2 OPT-2.7B").build()
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.74e9, rel=0.01)


def test_stable_diffusion_has_its_published_size() -> None:
    with torch.device("meta"):
        model = models.stable_diffusion()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(859.5e6, rel=1e-4)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"diffusers.*turbovlm\[diffusion\]"):
        list(count(subject("Generation, Stable Diffusion 1.5")))


def test_a_missing_library_is_named_before_anything_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "diffusers" else found(name)
    )
    told: list[str] = []
    with pytest.raises(MissingExtra, match=r"turbovlm\[diffusion\]"):
        count_all(lambda what, done, total: told.append(what))
    assert told == []


def generated(model: Any, ids: torch.Tensor, beams: int, steps: int) -> int:
    """What transformers' own beam search costs, with real values."""
    length = {"min_new_tokens": steps, "max_new_tokens": steps, "num_beams": beams}
    pixels = torch.zeros(1, 3, 32, 32)
    count = flops(model, (), call=lambda m, _: m.generate(pixels, input_ids=ids.clone(), **length))
    return count.macs


@pytest.mark.parametrize("steps", [1, 4])
def test_blip_captions_cost_what_generate_does(steps: int, tmp_path: Path) -> None:
    """But for two things: keys and values anew in each step, and logits of the whole prompt."""
    model = transformers.BlipForConditionalGeneration.from_pretrained(build.blip(tmp_path))
    beams, image, width, layers, words = 3, 65, 32, 1, len(build.WORDS)
    ids = torch.full((1, models.PROMPT + 1), 5)  # generate drops the last one, a separator
    keys_and_values = (steps - 1) * layers * 2 * beams * image * width**2
    head = (models.PROMPT - 1) * beams * (width**2 + 5 * width + width * words)
    ours = flops(model, (), call=lambda m, _: models.caption_model(beams, steps, m)).macs
    assert ours == generated(model, ids, beams, steps) + keys_and_values + head


@pytest.mark.parametrize("steps", [1, 4])
def test_blip2_captions_cost_what_generate_does(steps: int, tmp_path: Path) -> None:
    """But for the logits of the whole prompt."""
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(build.blip2(tmp_path))
    beams, queries, width, words = 5, 4, 32, len(build.WORDS) + 1
    ids = torch.full((1, queries + models.PROMPT), 5)
    ids[:, :queries] = model.config.image_token_id
    head = (queries + models.PROMPT - 1) * beams * width * words
    speech = models.speak(beams, model)
    parts = [lambda m, _: models.query(m), *[lambda *_: next(speech)] * steps]
    ours = sum(flops(model, (), call=part).macs for part in parts)
    assert ours == generated(model, ids, beams, steps) + head
