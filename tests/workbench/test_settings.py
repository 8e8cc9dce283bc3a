from __future__ import annotations

import json
from pathlib import Path

import pytest

from turbovlm.config import Merge, MergeRestore, VisualTokens
from turbovlm.errors import ConfigError
from turbovlm_workbench.settings import (
    code_of,
    combined,
    from_plain,
    keep_of,
    load_settings,
    merge_of,
    to_plain,
)

MERGE, KEEP = Merge(r=(0, 8)), VisualTokens(keep=0.25)


def test_each_alone_then_together() -> None:
    other = VisualTokens(keep=9)
    assert combined([MERGE], [KEEP, other]) == [
        (MERGE,), (KEEP,), (other,), (MERGE, KEEP), (MERGE, other)
    ]  # fmt: skip
    assert combined([], [KEEP]) == [(KEEP,)]


def test_what_is_among_them() -> None:
    assert (merge_of((MERGE, KEEP)), keep_of((MERGE, KEEP))) == (MERGE, KEEP)
    assert (merge_of((KEEP,)), keep_of((MERGE,)), merge_of(())) == (None, None, None)


@pytest.mark.parametrize("settings", [(), (MERGE,), (KEEP,), (MERGE, KEEP), (MergeRestore(0.3),)])
def test_plain_values_and_back(settings: tuple[Merge, ...]) -> None:
    told = json.loads(json.dumps(to_plain(settings)))
    assert from_plain(told) == settings
    assert isinstance(told, (type(None), dict, list)[len(settings)])


def test_the_line_of_code() -> None:
    assert code_of((MERGE, KEEP)) == (
        "turbovlm.apply(model, turbovlm.Merge(r=(0, 8)), turbovlm.VisualTokens(keep=0.25))"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read a configuration from"),
        ("[]", "holds no setting"),
        ("3", "a setting is a JSON object, or a list of several, not 3"),
        ('[{"kind": "merge", "r": 8}, 4]', "a list of several"),
        ('{"kind": "visual_tokens", "keep": 2.0}', "keep is a share in"),
        ('{"kind": "magic"}', "a setting of the kind 'magic'"),
    ],
)
def test_files_that_hold_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "turbo.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_settings(path)
    with pytest.raises(ConfigError, match="cannot read a configuration"):
        load_settings(tmp_path / "gone.json")


def test_a_saved_setting_is_read(tmp_path: Path) -> None:
    KEEP.save(tmp_path / "one.json")
    assert load_settings(tmp_path / "one.json") == (KEEP,)
    (tmp_path / "two.json").write_text(json.dumps(to_plain((MERGE, KEEP))))
    assert load_settings(tmp_path / "two.json") == (MERGE, KEEP)
