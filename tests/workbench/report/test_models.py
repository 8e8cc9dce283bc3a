"""The list of supported models: complete, and equal to the page in docs."""

from __future__ import annotations

from pathlib import Path

from turbovlm import hosts
from turbovlm.hosts import language
from turbovlm_workbench.report.models import Supported, markdown, tables, to_dict

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
KNOWN = Supported(hosts.rows(), language.ROWS, hosts.denoisers(), hosts.REFUSALS, language.REFUSALS)


def test_the_page_is_what_the_rows_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(KNOWN), (
        "run: turbovlm models --markdown > docs/models.md"
    )


def test_every_row_and_every_refusal_is_listed() -> None:
    data = to_dict(KNOWN)
    assert [record["block"] for record in data["supported"]] == [r.block for r in KNOWN.rows]
    assert all(record["example"] for record in data["supported"])
    assert [r["reason"] for r in data["refused"]] == [r.reason for r in KNOWN.refusals]
    supported, languages, drawing, refused = tables(KNOWN)
    assert [record["block"] for record in data["denoisers"]] == [d.block for d in KNOWN.denoisers]
    assert all(record["left alone"] and record["example"] for record in data["denoisers"])
    assert drawing.row_count == len(KNOWN.denoisers)
    assert languages.row_count == len(data["language_models"])
    assert (supported.row_count, refused.row_count) == (len(KNOWN.rows), len(KNOWN.refusals))


def test_every_language_model_has_a_tower_that_merges() -> None:
    encoders = {tower.rsplit(".", 1)[-1] for row in KNOWN.rows for tower in row.towers}
    assert all(row.towers and set(row.towers) <= encoders for row in KNOWN.languages)
    cells = KNOWN.language_cells
    assert ("Qwen3VLModel", "Qwen3VLVisionModel", "images and videos", "yes") in [
        c[:4] for c in cells
    ]
    refused = [c for c in cells if c[3] == "no"]
    assert [c[:2] for c in refused] == [
        ("Blip2Model", "Blip2VisionModel"),
        ("InstructBlipModel", "InstructBlipVisionModel"),
        ("InstructBlipVideoModel", "InstructBlipVideoVisionModel"),
    ]
    assert all("32 queries" in c[2] for c in refused)
