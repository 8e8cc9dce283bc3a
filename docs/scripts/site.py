"""A hook of mkdocs: links that leave the manual (to the README, benchmarks) become plain text."""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^]]+)\]\((\.\./[^)]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Called by mkdocs for every page."""
    folder = posixpath.dirname(page.file.src_uri)

    def kept(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2].partition("#")[0]))
        return link[1] if target.startswith("..") else link[0]

    return LINK.sub(kept, markdown)
