"""What every configuration does: print, round-trip through JSON, and check plain values."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from turbovlm.errors import ConfigError


@dataclass(frozen=True, repr=False)
class Setting:
    """Base of the configurations; ``kind`` tells them apart in a file."""

    kind: ClassVar[str]

    def __repr__(self) -> str:
        """Only what differs from the defaults, as one would write it."""
        shown = (f"{name}={value!r}" for name, value in self._given().items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def _given(self) -> dict[str, Any]:
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, only what differs from the defaults, plus the kind."""
        plain = {n: list(v) if isinstance(v, tuple) else v for n, v in self._given().items()}
        return {"kind": self.kind, **plain}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: for an unknown key or kind, or a value out of range.
        """
        fields = dict(data)
        kind = fields.pop("kind", cls.kind)
        if kind != cls.kind:
            raise ConfigError(f"kind {kind!r} is not {cls.__name__}: expected {cls.kind!r}")
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ConfigError(
                f"unknown settings {', '.join(unknown)}: known are {', '.join(sorted(known))}"
            )
        # JSON has no tuples
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()})

    def save(self, path: str | Path) -> None:
        """Write as a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ConfigError: if the file is missing, is not JSON, or holds a bad setting.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read a configuration from {path}: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} must hold one JSON object, not {type(data).__name__}")
        return cls.from_dict(data)


def check_choices(setting: object, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raise `ConfigError` for a field that holds none of its allowed words."""
    for name, allowed in choices.items():
        value = getattr(setting, name)
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def check_count(name: str, value: object) -> None:
    """Raise `ConfigError` for anything but an integer from 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be an integer, not {value!r}")
    if value < 0:
        raise ConfigError(f"{name} must not be negative, got {value}: use 0 to switch it off")


def check_finite(name: str, value: object) -> None:
    """Raise `ConfigError` for anything but a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, got {value}")


def check_alpha(value: float | None) -> None:
    """Raise `ConfigError` unless ``value`` is None or a finite number from 0."""
    if value is None:
        return
    check_finite("alpha", value)
    if value < 0:
        raise ConfigError(f"alpha must not be negative, got {value}: use 0 to ignore A")
