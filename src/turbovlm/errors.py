"""Every error that turbovlm raises on purpose. Each message ends with the fix.

TurboError
├── ConfigError            a value out of range or contradictory    (also a ValueError)
├── UnknownArchitecture    no row describes the model               (also a TypeError)
├── NothingToPatch         a row fits, yet no block was found       (also a TypeError)
├── UnsuitableBlock        cannot be split: parallel, windows      (also a TypeError)
├── UnseenAttention        the attention kernel hides its inputs
├── AlreadyApplied         patched already, with another setting
├── NotApplied             remove or trace without apply
├── UnsupportedInput       a forward that merging cannot follow     (also a ValueError)
├── MissingExtra           an optional dependency is not installed  (also an ImportError)
├── InputError             a file, folder or table the user gave    (also a ValueError)
└── ModelError             a model that cannot be loaded            (also a ValueError)
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


class TurboError(Exception):
    """Base of all errors below; the command line turns it into exit code 2."""


class ConfigError(TurboError, ValueError):
    """A configuration value is out of range or contradicts another one."""


class UnknownArchitecture(TurboError, TypeError):
    """No row of the host tables describes this model."""


class NothingToPatch(TurboError, TypeError):
    """The model's tower is known but holds no transformer block to patch."""


class UnsuitableBlock(TurboError, TypeError):
    """A known architecture that cannot be patched, or halves that are not the whole block."""


class UnseenAttention(TurboError, RuntimeError):
    """The block ran without an attention call that could be observed."""


class AlreadyApplied(TurboError, RuntimeError):
    """The model, or a part of it, is patched already."""


class NotApplied(TurboError, RuntimeError):
    """The model is not patched."""


class UnsupportedInput(TurboError, ValueError):
    """The forward asks for something that merged tokens cannot give."""


class MissingExtra(TurboError, ImportError):
    """An optional dependency is missing; the message names the extra to install."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs {package}, which is not installed: pip install 'turbovlm[{extra}]'"
        )
        self.package, self.extra = package, extra


class InputError(TurboError, ValueError):
    """An input file, folder or table cannot be used."""


class ModelError(TurboError, ValueError):
    """A model cannot be found, loaded or used for the task."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: dotted module name, e.g. ``"transformers"``.
        extra: the extra of turbovlm that installs it, e.g. ``"hf"``.

    Raises:
        MissingExtra: if the package is not installed. A package that is installed but fails
            to import keeps its own error: hiding it would send the user to the wrong fix.
    """
    package = module.split(".")[0]
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(package, extra)
    return importlib.import_module(module)
