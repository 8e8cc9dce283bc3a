"""The list of supported models: complete, and equal to the page in docs."""

from __future__ import annotations

from pathlib import Path

from turbovlm import hosts
from turbovlm_workbench.report.models import markdown, tables, to_dict

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


def test_the_page_is_what_the_rows_say() -> None:
    page = markdown(hosts.rows(), hosts.denoisers(), hosts.REFUSALS)
    assert PAGE.read_text(encoding="utf-8") == page, (
        "run: turbovlm models --markdown > docs/models.md"
    )


def test_every_row_and_every_refusal_is_listed() -> None:
    rows, refusals = hosts.rows(), hosts.REFUSALS
    data = to_dict(rows, hosts.denoisers(), refusals)
    assert [record["block"] for record in data["supported"]] == [row.block for row in rows]
    assert all(record["example"] for record in data["supported"])
    assert [r["reason"] for r in data["refused"]] == [r.reason for r in refusals]
    supported, drawing, refused = tables(rows, hosts.denoisers(), refusals)
    assert [record["block"] for record in data["denoisers"]] == [d.block for d in hosts.denoisers()]
    assert all(record["left alone"] and record["example"] for record in data["denoisers"])
    assert drawing.row_count == len(hosts.denoisers())
    assert (supported.row_count, refused.row_count) == (len(rows), len(refusals))
