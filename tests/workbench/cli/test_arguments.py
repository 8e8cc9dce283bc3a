from __future__ import annotations

import pytest

from turbovlm.errors import ConfigError
from turbovlm_workbench.cli.arguments import join_values, names, numbers, read_share, whole_numbers


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("bench M --r 4 8 12 --json x", "bench M --r 4,8,12 --json x"),
        ("bench M --r 4,8 12", "bench M --r 4,8,12"),
        ("bench M --r=4,8", "bench M --r=4,8"),
        ("bench M --method turbo random --r 4", "bench M --method turbo,random --r 4"),
        ("sweep M --alpha 1 2 --inflection -0.5 0", "sweep M --alpha 1,2 --inflection -0.5,0"),
        ("bench M --r -3 4 --fused", "bench M --r -3,4 --fused"),
        ("bench M --r --fused", "bench M --r --fused"),
        ("bench M --r 4 -h", "bench M --r 4 -h"),
        ("bench --r 4 8 -- M N", "bench --r 4,8 -- M N"),
        ("demo --html a", "demo --html a"),
        ("", ""),
    ],
)
def test_several_values_after_one_flag(given: str, read: str) -> None:
    assert join_values(given.split()) == read.split()


def test_a_flag_given_twice_keeps_both() -> None:
    assert join_values(["--r", "4", "8", "--fused", "--r", "12"]) == ["--r", "4,8,12", "--fused"]


def test_parts() -> None:
    assert names(" 4, 8 ,,12 ", "--r") == ["4", "8", "12"]
    assert whole_numbers("4,-8,+2", "--r") == [4, -8, 2]
    for text in ("4,x", "1.5", "", ",", "--4"):
        with pytest.raises(ConfigError, match="--r"):
            whole_numbers(text, "--r")


def test_numbers_and_shares() -> None:
    assert numbers("0.5,2,-1", "--alpha") == [0.5, 2.0, -1.0]
    with pytest.raises(ConfigError, match="--alpha takes numbers, not 'x'"):
        numbers("1,x", "--alpha")
    assert read_share("1%", "--max-loss") == pytest.approx(0.01)
    assert read_share(" 0.5 % ", "--max-loss") == pytest.approx(0.005)
    assert read_share("0.02", "--max-loss") == 0.02
    for text in ("1", "0", "100%", "-1%", "nan", "%", "one"):
        with pytest.raises(ConfigError, match="--max-loss takes a share"):
            read_share(text, "--max-loss")
