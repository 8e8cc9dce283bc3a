from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from turbovlm.config import Merge, VisualTokens
from turbovlm.errors import ConfigError
from turbovlm_workbench.run.lmms_arguments import split_arguments

REST = {"pretrained": "some", "device_map": "cpu"}


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"r": 16}, (Merge(r=16),)),
        ({"speedup": 1.4, "method": "redundancy"}, (Merge(speedup=1.4, method="redundancy"),)),
        ({"keep": 0.25}, (VisualTokens(keep=0.25),)),
        ({"keep": 64, "r": 8, "alpha": 2}, (Merge(r=8, alpha=2.0), VisualTokens(keep=64))),
    ],
)
def test_what_is_applied_and_what_is_left(given: dict[str, Any], settings: tuple[Any, ...]) -> None:
    base, found, rest = split_arguments({"base": "llava_hf", **given, **REST})
    assert (base, found, rest) == ("llava_hf", settings, REST)


def test_saved_settings(tmp_path: Path) -> None:
    path = tmp_path / "turbo.json"
    path.write_text(json.dumps([Merge(r=8).to_dict(), VisualTokens(keep=0.5).to_dict()]))
    _, found, rest = split_arguments({"base": "llava_hf", "config": str(path), **REST})
    assert (found, rest) == ((Merge(r=8), VisualTokens(keep=0.5)), REST)
    with pytest.raises(ConfigError, match="config is a whole setting: leave r, keep out"):
        split_arguments({"base": "llava_hf", "config": str(path), "keep": 0.5, "r": 4})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"r": 8}, "name it, --model_args base=llava_hf"),
        ({"base": "turbovlm", "r": 8}, "name it"),
        ({"base": "llava_hf"}, "give one of r, ratio and speedup"),
        ({"base": "llava_hf", "keep": 2.0}, "keep is a share in"),
        ({"base": "llava_hf", "keep": "all"}, "keep must be a number"),
        ({"base": "llava_hf", "method": "random", "keep": 0.5}, "give one of r, ratio and speedup"),
    ],
)
def test_mistakes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_arguments(given)
