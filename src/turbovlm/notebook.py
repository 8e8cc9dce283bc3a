"""What a notebook shows of a setting, a record or a result: a small table in HTML."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

# lines in grey and nothing else of its own: text and ground are the notebook's, light or dark
_TABLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"
_CELL = "padding:.2em .8em .2em 0;border-bottom:1px solid rgba(128,128,128,.35);text-align:"


def html_table(
    title: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    note: str = "",
    strong: Collection[int] = (),
) -> str:
    """A table that fits any notebook; every text in it is escaped.

    Args:
        title: above it; empty for none.
        headers: of the columns.
        rows: cells, written with `str`; the first column is on the left, the others on the right.
        note: below it.
        strong: numbers of the rows to put weight on.
    """
    parts = [f"<div><b>{escape(title)}</b>" if title else "<div>"]
    parts.append(f'<table style="{_TABLE}"><thead><tr>')
    parts += [_cell("th", column, text) for column, text in enumerate(headers)]
    parts.append("</tr></thead><tbody>")
    for number, row in enumerate(rows):
        weight = ' style="font-weight:bold"' if number in strong else ""
        cells = "".join(_cell("td", column, text) for column, text in enumerate(row))
        parts.append(f"<tr{weight}>{cells}</tr>")
    parts.append("</tbody></table>")
    parts.append(f"<small>{escape(note)}</small></div>" if note else "</div>")
    return "".join(parts)


def _cell(tag: str, column: int, text: object) -> str:
    side = "right" if column else "left"
    return f'<{tag} style="{_CELL}{side}">{escape(str(text))}</{tag}>'
