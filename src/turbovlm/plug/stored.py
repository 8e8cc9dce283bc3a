"""Settings that are stored with a model, so that `save_pretrained` keeps them.

They are kept in the model's own configuration object, apart from the quantization settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from turbovlm.config import Setting
from turbovlm.errors import ConfigError

ATTRIBUTE = "turbovlm"


def store(model: nn.Module, configs: Sequence[Setting]) -> None:
    """Write the settings into the model's configuration, where it has one that is saved."""
    target = _target(model)
    if target is None:
        return
    told = [config.to_dict() for config in configs]
    if _EARLIER in model.__dict__:  # another kind of setting is in place already
        told = [part for part in stored(model) if part not in told] + told
    else:
        model.__dict__[_EARLIER] = (getattr(target, ATTRIBUTE, None),)
    setattr(target, ATTRIBUTE, told[0] if len(told) == 1 else told)


def forget(model: nn.Module) -> None:
    """Put back what was there before `store`, in every part of the model."""
    for module in model.modules():
        if _EARLIER not in module.__dict__:
            continue
        (earlier,) = module.__dict__.pop(_EARLIER)
        target = _target(module)
        if target is None:
            continue
        if earlier is not None:
            setattr(target, ATTRIBUTE, earlier)
        elif hasattr(target, ATTRIBUTE):
            delattr(target, ATTRIBUTE)


def stored(model: object) -> list[dict[str, Any]]:
    """What `store` wrote, as plain values; empty where nothing is stored.

    Raises:
        ConfigError: if something else stands there.
    """
    found = getattr(getattr(model, "config", None), ATTRIBUTE, None)
    if found is None:
        return []
    parts = found if isinstance(found, list) else [found]
    if not all(isinstance(part, Mapping) for part in parts):
        raise ConfigError(
            f"the setting that is stored with this model cannot be read, {found!r}: give one, "
            "e.g. Merge(r=16), or delete config.turbovlm"
        )
    return [dict(part) for part in parts]


_EARLIER = "turbo_stored"


def _target(model: nn.Module) -> Any:
    """A configuration object of transformers; others are not saved with their attributes."""
    config = getattr(model, "config", None)
    saved = hasattr(config, "save_pretrained") and not isinstance(config, Mapping)
    return config if saved else None
