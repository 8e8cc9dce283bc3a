"""Pages in a real browser, headless."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"needs one of {', '.join(NAMES)}")
# A window cannot be narrower than 500 pixels, a frame can, and media queries go by the frame.
PROBE = """
const errors = [];
const frame = document.querySelector('iframe');
addEventListener('load', () => {
  const root = frame.contentDocument.documentElement;
  const cards = [...frame.contentDocument.querySelectorAll('.scroll')];
  const found = {
    width: root.scrollWidth, height: root.scrollHeight, errors,
    inner: cards.map(card => card.scrollWidth - card.clientWidth),
    broken: [...frame.contentDocument.images].filter(i => !i.naturalWidth).length,
  };
  document.title = 'FOUND' + JSON.stringify(found) + 'END';
});
frame.contentWindow.addEventListener('error', e => errors.push(e.message));
"""


@dataclass(frozen=True)
class Seen:
    """What a page looks like at one width: its extent in pixels, script errors, by how much each
    table is wider than its card, and pictures that do not show."""

    width: int
    height: int
    errors: list[str]
    inner: list[int]
    broken: int


def seen_at(page: str, width: int, folder: Path) -> Seen:
    """Open a page in a frame of that many pixels."""
    assert BROWSER is not None
    frame = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page)}">'
    probe = folder / "probe.html"
    probe.write_text(
        f"<!doctype html><title>-</title><body>{frame}</iframe><script>{PROBE}</script>",
        encoding="utf-8",
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *options, f"--user-data-dir={folder / 'profile'}", probe.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"FOUND(.*?)END", done.stdout)
    assert found is not None, done.stderr[-2000:]
    return Seen(**json.loads(html.unescape(found[1])))
