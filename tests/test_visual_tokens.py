"""`VisualTokens` checks itself, prints readably and round-trips."""

from __future__ import annotations

from pathlib import Path

import pytest

from turbovlm.config.visual_tokens import VisualTokens
from turbovlm.errors import ConfigError


@pytest.mark.parametrize(
    "config",
    [
        VisualTokens(keep=0.25),
        VisualTokens(keep=1.0),
        VisualTokens(keep=64, method="random", seed=3),
        VisualTokens(coverage=0.9, merge=False, floor=False),
    ],
)
def test_round_trip(config: VisualTokens, tmp_path: Path) -> None:
    assert VisualTokens.from_dict(config.to_dict()) == config
    config.save(tmp_path / "c.json")
    assert VisualTokens.load(tmp_path / "c.json") == config
    assert eval(repr(config)) == config


def test_a_count_stays_a_count_and_a_share_a_share() -> None:
    assert VisualTokens(keep=1).count(50) == 1
    assert VisualTokens(keep=1.0).count(50) == 50
    assert VisualTokens(keep=0.25).count(50) == 12
    assert VisualTokens(keep=0.001).count(50) == 1
    with pytest.raises(ConfigError, match="more tokens than the 50"):
        VisualTokens(keep=51).count(50)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "keep or coverage"),
        ({"keep": 0.5, "coverage": 0.9}, "keep or coverage"),
        ({"keep": 0}, "at least one"),
        ({"keep": -3}, "at least one"),
        ({"keep": 0.0}, r"\(0, 1\]"),
        ({"keep": 1.5}, r"\(0, 1\]"),
        ({"keep": True}, "keep must be a number"),
        ({"keep": "0.5"}, "keep must be a number"),
        ({"keep": float("nan")}, "finite"),
        ({"coverage": 0.0}, r"\(0, 1\]"),
        ({"coverage": 2}, r"\(0, 1\]"),
        ({"keep": 0.5, "method": "fastv"}, "method must be one of turbo"),
        ({"keep": 0.5, "merge": 1}, "merge must be True or False"),
        ({"keep": 0.5, "floor": "yes"}, "floor must be True or False"),
        ({"keep": 0.5, "seed": -1}, "seed must not be negative"),
    ],
)
def test_bad_values_are_named(fields: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        VisualTokens(**fields)  # type: ignore[arg-type]
