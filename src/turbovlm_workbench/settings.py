"""What is applied to a model together: nothing, merging, fewer visual tokens, or both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turbovlm.config import Merge, Setting, VisualTokens
from turbovlm.errors import ConfigError
from turbovlm.reducers import setting_of

Settings = tuple[Setting, ...]
"""Arguments of `turbovlm.apply`; empty for the model as it is."""


def merge_of(settings: Settings) -> Merge | None:
    """What merges in an encoder, if anything."""
    return next((setting for setting in settings if isinstance(setting, Merge)), None)


def keep_of(settings: Settings) -> VisualTokens | None:
    """What lets a language model have fewer visual tokens, if anything."""
    return next((setting for setting in settings if isinstance(setting, VisualTokens)), None)


def combined(merges: Sequence[Merge], keeps: Sequence[VisualTokens]) -> list[Settings]:
    """Every setting alone, merging first, then each merge with each share that is kept."""
    alone: list[Settings] = [(setting,) for setting in (*merges, *keeps)]
    return alone + [(merge, keep) for keep in keeps for merge in merges]


def to_plain(settings: Settings) -> dict[str, Any] | list[dict[str, Any]] | None:
    """JSON types, as a model stores its settings: None, one of them, or a list of several."""
    told = [setting.to_dict() for setting in settings]
    return (told[0] if len(told) == 1 else told) if told else None


def from_plain(told: object) -> Settings:
    """Inverse of `to_plain`.

    Raises:
        ConfigError: for anything else, an unknown kind or a value out of range.
    """
    parts: list[Any] = told if isinstance(told, list) else [] if told is None else [told]
    if not all(isinstance(part, Mapping) for part in parts):
        raise ConfigError(f"a setting is a JSON object, or a list of several, not {told!r}")
    return tuple(setting_of(dict(part)) for part in parts)


def load_settings(path: Path) -> Settings:
    """What ``tune`` or ``Setting.save`` wrote.

    Raises:
        ConfigError: if the file is missing, is not JSON, or holds no setting.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read a configuration from {path}: {error}") from error
    if not (settings := from_plain(told)):
        raise ConfigError(f"{path} holds no setting: give what turbovlm tune saved")
    return settings


def code_of(settings: Settings, model: str = "model") -> str:
    """The line that switches them on, only what differs from the defaults."""
    return f"turbovlm.apply({', '.join([model, *(f'turbovlm.{s!r}' for s in settings)])})"
