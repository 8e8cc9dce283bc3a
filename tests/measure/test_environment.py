"""The facts about the machine, and that they do not say whose it is."""

from __future__ import annotations

import getpass
import json
import os
import platform

import pytest
import torch

from turbovlm import measure
from turbovlm.measure import environment


def test_facts_are_json_and_name_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/somewhere/private/libjemalloc.so.2")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    facts = environment()
    text = json.dumps(facts)
    assert facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert facts["allocator"] == "jemalloc"
    assert facts["MALLOC_ARENA_MAX"] == "1"
    assert facts["device"] == "cpu"
    assert "private" not in text
    assert os.sep + "home" not in text
    assert platform.node() not in text.split('"')
    assert getpass.getuser() not in text.split('"')


def test_exports() -> None:
    assert measure.__all__ == sorted(measure.__all__)
    assert all(hasattr(measure, name) for name in measure.__all__)
