"""What follows ``--model_args`` of lmms-eval for the model type ``turbovlm``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turbovlm.config import Merge, VisualTokens
from turbovlm.errors import ConfigError
from turbovlm_workbench.settings import Settings, load_settings

NAME = "turbovlm"
"""The model type."""
FIELDS = ("r", "ratio", "speedup", "method", "alpha")  # of a `Merge`, one number or word each


def split_arguments(given: Mapping[str, Any]) -> tuple[str, Settings, dict[str, Any]]:
    """The base model, what is applied to it, and what is left for the base model.

    Args:
        given: ``base`` (a model type of lmms-eval), ``config`` (saved settings) or ``keep`` of a
            `VisualTokens` and the fields of a `Merge` with one number each, and the arguments of
            the base model.

    Raises:
        ConfigError: without a base or a setting, or for a bad setting.
    """
    rest = dict(given)
    base = rest.pop("base", None)
    if not isinstance(base, str) or base == NAME:
        raise ConfigError(
            "--model turbovlm reduces the tokens of another model of lmms-eval: name it, "
            "--model_args base=llava_hf,pretrained=...,keep=0.25"
        )
    config = rest.pop("config", None)
    fields = {key: rest.pop(key) for key in FIELDS if key in rest}
    kept = {"keep": rest.pop("keep")} if "keep" in rest else {}
    if config is not None:
        if fields or kept:
            raise ConfigError(f"config is a whole setting: leave {', '.join(fields | kept)} out")
        return base, load_settings(Path(config)), rest
    merges = (Merge.from_dict(fields),) if fields or not kept else ()
    return base, (*merges, *((VisualTokens.from_dict(kept),) if kept else ())), rest
