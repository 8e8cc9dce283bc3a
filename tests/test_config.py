"""Configurations check themselves and round-trip."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbovlm import Merge, MergeRestore
from turbovlm.config import Paper, RestorePreset
from turbovlm.errors import ConfigError, TurboError

BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "give one of r, ratio and speedup"),
    ({"r": 4, "ratio": 0.1}, "give one of r, ratio and speedup"),
    ({"ratio": 0.1, "speedup": 1.4}, "give one of r, ratio and speedup"),
    ({"speedup": 0.9}, "speedup must be at least 1"),
    ({"speedup": "fast"}, "speedup must be a number"),
    ({"r": -1}, "r must not be negative, got -1"),
    ({"r": 4.0}, "r must be an integer, not 4.0"),
    ({"r": True}, "r must be an integer"),
    ({"r": "8"}, "r must be an integer"),
    ({"r": (4, -2)}, "r must not be negative"),
    ({"ratio": 0.6}, r"ratio must be in \[0, 0.5\]"),
    ({"ratio": math.nan}, "ratio must be finite"),
    ({"r": 4, "alpha": math.inf}, "alpha must be finite"),
    ({"r": 4, "alpha": math.nan}, "alpha must be finite"),
    ({"r": 4, "alpha": "6"}, "alpha must be a number"),
    ({"r": 4, "alpha": -1}, "alpha must not be negative"),
    ({"r": 4, "inflection": 2}, r"inflection must be in \[-1, 1\]"),
    ({"r": (4, 4), "inflection": 1}, "inflection shapes a constant r"),
    ({"r": 4, "method": "tome"}, "method must be one of turbo, redundancy"),
    ({"r": 4, "method": "redundancy", "alpha": 6}, "method='redundancy' does not use alpha"),
    ({"r": 4, "method": "semantics", "alpha": 0}, "method='semantics' does not use alpha"),
    ({"r": 4, "seed": 3}, "method='turbo' does not use seed"),
    ({"r": 4, "preset": "paper"}, "preset must come from"),
    ({"ratio": 0.1, "alpha": 6, "preset": Paper()}, "takes r alone"),
    ({"r": 4, "min_tokens": -1}, "min_tokens must not be negative"),
    ({"r": 4, "min_tokens": 2.5}, "min_tokens must be an integer"),
]


@pytest.mark.parametrize(("fields", "words"), BAD, ids=lambda v: str(v))
def test_bad_values_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Merge(**fields)
    assert isinstance(caught.value, TurboError)
    assert isinstance(caught.value, ValueError)


BAD_PAPER: list[tuple[dict[str, Any], str]] = [
    ({"beta": 0, "fusion": "S4"}, "beta must be positive"),
    ({"beta": 0.9}, "beta and gamma belong to S4, not to S1"),
    ({"fusion": "S5"}, "fusion must be one of"),
    ({"metric": "value"}, "metric must be one of"),
    ({"order": "even"}, "unknown settings order"),
    ({"method": "redundancy", "alpha": 6}, "does not use alpha"),
    ({"method": "redundancy", "fusion": "S3"}, "has no fusion"),
    ({"fusion": "S2", "alpha": 6}, "S2 has none"),
]


@pytest.mark.parametrize(("fields", "words"), BAD_PAPER, ids=lambda v: str(v))
def test_bad_values_of_the_papers_preset_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Merge.paper(4, **fields)


def test_numpys_numbers_and_lists_are_taken() -> None:
    assert Merge(r=np.int64(4)) == Merge(r=4)  # type: ignore[arg-type]
    assert Merge(r=[4, np.int32(2)]) == Merge(r=(4, 2))  # type: ignore[arg-type]
    assert Merge(ratio=np.float32(0.25)) == Merge(ratio=0.25)  # type: ignore[arg-type]
    assert MergeRestore(ratio=[0.5, 0.0]) == MergeRestore(ratio=(0.5, 0.0))  # type: ignore[arg-type]
    assert type(Merge(r=np.int64(4)).r) is int  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["fusion", "beta", "gamma", "metric", "floor_rule"])
def test_a_setting_of_an_earlier_version_says_what_replaced_it(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{name} is no longer a setting: use turbovlm.Merge.paper"
    ):
        Merge.from_dict({"kind": "merge", "r": 4, name: 1})


BAD_RESTORE: list[tuple[dict[str, Any], str]] = [
    ({"ratio": -0.1}, r"ratio must be in \[0, 0.75\], got -0.1"),
    ({"ratio": 1.2}, r"ratio must be in \[0, 0.75\], got 1.2: .* a larger cell"),
    ({"ratio": 0.6, "preset": {"destinations": "bipartite"}}, r"ratio must be in \[0, 0.5\]"),
    ({"ratio": (0.3, 0.9)}, r"ratio must be in \[0, 0.75\], got 0.9"),
    ({"ratio": ()}, "ratio needs at least one value"),
    ({"ratio": "0.3"}, "ratio must be a number"),
    ({"ratio": math.nan}, "ratio must be finite"),
    ({"ratio": 0.3, "feed_forward": 0.8}, r"feed_forward must be in \[0, 0.75\]"),
    ({"ratio": 0.3, "cell": (1, 1)}, "cell must hold at least two tokens"),
    ({"ratio": 0.3, "cell": 2}, "cell must be"),
    ({"ratio": 0.3, "cell": (2, -2)}, "cell must not be negative"),
    ({"ratio": 0.3, "seed": -1}, "seed must not be negative"),
    ({"ratio": 0.3, "seed": 2**63}, r"seed must be below 2\^63"),
    ({"ratio": 0.3, "method": "random", "alpha": 2}, "does not use alpha"),
    ({"ratio": 0.3, "alpha": -1}, "alpha must not be negative"),
    ({"ratio": 0.3, "min_tokens": 2.5}, "min_tokens must be an integer"),
    ({"ratio": 0.3, "method": "tomesd"}, "method must be one of turbo"),
    ({"ratio": 0.3, "metric": "key"}, "metric is no longer a setting: use MergeRestore.paper"),
    ({"ratio": 0.3, "plan": "step"}, "plan must be one of block, module"),
    (
        {"ratio": 0.3, "preset": {"restore": "blur"}},
        "restore must be one of linear, copy, weighted",
    ),
]


@pytest.mark.parametrize(("fields", "words"), BAD_RESTORE, ids=lambda v: str(v))
def test_bad_values_of_generation_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MergeRestore(**fields)


@pytest.mark.parametrize(
    "config",
    [
        MergeRestore(ratio=0.3),
        MergeRestore(ratio=(0.5, 0.3, 0.0), cell=(4, 2), seed=None, cross_attention=0.0),
        MergeRestore(ratio=0.9, cell=(4, 4), preset=RestorePreset(metric="token", restore="copy")),
        MergeRestore.paper(ratio=0.5, method="redundancy"),
        Merge(r=16),
        Merge(r=(1, 2, 3), method="random", seed=3),
        Merge(ratio=0.25, alpha=2.5),
        Merge(speedup=1.4),
        Merge(r=8, inflection=-0.5, min_tokens=20),
        Merge.paper(8, fusion="S4", beta=0.9, gamma=6, alpha=2.5, min_tokens=20),
        Merge.paper(8, metric="query", method="semantics"),
    ],
)
def test_round_trip(config: Merge | MergeRestore, tmp_path: Path) -> None:
    kind = type(config)
    assert kind.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.save(tmp_path / "merge.json")
    assert kind.load(tmp_path / "merge.json") == config
    assert hash(config) == hash(kind.load(tmp_path / "merge.json"))
    assert eval(repr(config)) == config
    paper = isinstance(config.preset, Paper) or config.preset == MergeRestore.paper(0.3).preset
    assert repr(config).startswith(f"{kind.__name__}.paper(" if paper else f"{kind.__name__}(")
    other = Merge if kind is MergeRestore else MergeRestore
    with pytest.raises(ConfigError, match=f"is not {other.__name__}"):
        other.load(tmp_path / "merge.json")


def test_only_what_differs_is_written() -> None:
    assert Merge(r=16).to_dict() == {"kind": "merge", "r": 16}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "cannot read a configuration"),
        ("[1]", "must hold one JSON object"),
        ('{"kind": "merge", "r": 4, "speed": 2}', "unknown settings speed"),
        ('{"kind": "prune", "r": 4}', "kind 'prune'"),
        ('{"r": -4}', "must not be negative"),
    ],
)
def test_bad_files_are_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "merge.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        Merge.load(path)
    with pytest.raises(ConfigError, match="cannot read"):
        Merge.load(tmp_path / "absent.json")
