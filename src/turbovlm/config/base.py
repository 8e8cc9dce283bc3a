"""What every configuration does: print, round-trip through JSON, and check plain values."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from turbovlm.errors import ConfigError
from turbovlm.notebook import html_table


@dataclass(frozen=True, repr=False)
class Setting:
    """Base of the configurations; ``kind`` tells them apart in a file."""

    kind: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = {}
    """Fields of earlier versions, and what to write instead."""

    def __new__(cls, *_: object, **fields: object) -> Self:
        """Say what replaced a field, where Python would only say that there is none."""
        cls._check_renamed(fields)
        return super().__new__(cls)

    @classmethod
    def _check_renamed(cls, fields: Mapping[str, object]) -> None:
        for name in sorted(set(fields) & set(cls.renamed)):
            raise ConfigError(f"{name} is no longer a setting: use {cls.renamed[name]}")

    def __repr__(self) -> str:
        """Only what differs from the defaults, as one would write it."""
        shown = (f"{name}={value!r}" for name, value in self._given().items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_html_(self) -> str:
        """In a notebook: only what differs from the defaults, as one would write it below."""
        rows = [(name, repr(value)) for name, value in self._given().items()]
        return html_table(type(self).__name__, ("setting", "value"), rows, repr(self))

    def _given(self) -> dict[str, Any]:
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, only what differs from the defaults, plus the kind."""
        return {"kind": self.kind, **{n: _plain(v) for n, v in self._given().items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: for an unknown or missing key, an unknown kind, or a value out of range.
        """
        fields = dict(data)
        kind = fields.pop("kind", cls.kind)
        if kind != cls.kind:
            raise ConfigError(f"kind {kind!r} is not {cls.__name__}: expected {cls.kind!r}")
        known = {f.name for f in dataclasses.fields(cls)}
        cls._check_renamed(fields)
        if unknown := sorted(set(fields) - known):
            raise ConfigError(
                f"unknown settings {', '.join(unknown)}: known are {', '.join(sorted(known))}"
            )
        needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if missing := sorted(needed - set(fields)):
            raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}: add what is missing")
        return cls(**fields)

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
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"cannot read a configuration from {path}: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} must hold one JSON object, not {type(data).__name__}")
        return cls.from_dict(data)

    def _set(self, name: str, value: object) -> None:
        """Replace a field while the configuration checks itself; it is frozen for everyone else."""
        object.__setattr__(self, name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, Setting):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def check_choices(setting: object, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raise `ConfigError` for a field that holds none of its allowed words."""
    for name, allowed in choices.items():
        value = getattr(setting, name)
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raise `ConfigError` for anything but a bool."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, not {value!r}")


def as_count(name: str, value: object) -> int:
    """An integer from 0; NumPy's and PyTorch's integers count.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(value, bool):
        raise ConfigError(f"{name} must be an integer, not {value!r}")
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"{name} must be an integer, not {value!r}") from None
    if count < 0:
        raise ConfigError(f"{name} must not be negative, got {count}: use 0 to switch it off")
    return count


def as_number(name: str, value: object) -> float:
    """A finite number; NumPy's floats count.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    number = value if isinstance(value, int | float) else float(value)
    if not math.isfinite(number):
        raise ConfigError(f"{name} must be finite, got {value}")
    return number


def as_alpha(value: object) -> float | None:
    """None, or a finite number from 0.

    Raises:
        ConfigError: for anything else.
    """
    if value is None:
        return None
    alpha = as_number("alpha", value)
    if alpha < 0:
        raise ConfigError(f"alpha must not be negative, got {alpha}: use 0 to ignore A")
    return alpha


def check_method(method: str, given: Mapping[str, object]) -> None:
    """Raise `ConfigError` for an unknown method, or an option that the method ignores.

    Args:
        method: name of a score.
        given: ``alpha`` and ``seed`` where they differ from their defaults.
    """
    # the scores are functions on tensors: torch is not needed before a configuration is made
    from turbovlm.maths.score import find_score

    found = find_score(method)
    for name in given:
        if name not in found.options:
            raise ConfigError(f"method={method!r} does not use {name}: leave {name} out")
