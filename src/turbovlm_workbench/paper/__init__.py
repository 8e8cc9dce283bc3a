"""Architectures of the paper that no host library ships: NLVR2's and UPop's BLIP, MiniGPT-v2."""

from __future__ import annotations

import importlib

NAMES = ("nlvr", "minigptv2", "upop")


def register_paper_models() -> None:
    """Let transformers' Auto classes find the folders of these models.

    Importing a model registers its own name; this imports them all.

    Raises:
        MissingExtra: if transformers is not installed.
    """
    for name in NAMES:
        importlib.import_module(f"turbovlm_workbench.paper.{name}")
