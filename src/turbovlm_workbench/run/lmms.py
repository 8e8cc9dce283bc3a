"""lmms-eval on a merged model: its tasks, its models, and one more argument.

    lmms-eval --model turbovlm --tasks gqa \\
        --model_args base=llava_hf,pretrained=llava-hf/llava-1.5-7b-hf,r=16

lmms-eval finds this module by an entry point; nothing else of turbovlm imports it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

import turbovlm
from turbovlm.config import Merge
from turbovlm.errors import ConfigError, ModelError, require

NAME = "turbovlm"
HOLDERS = ("_model", "model")  # where the models of lmms-eval keep the network


def manifest() -> Any:
    """What lmms-eval registers: the model type ``turbovlm``."""
    registry = importlib.import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.Turbo")


def split_arguments(given: Mapping[str, Any]) -> tuple[str, Merge, dict[str, Any]]:
    """The base model, the setting, and what is left for the base model.

    Args:
        given: ``base`` (a model type of lmms-eval), ``config`` (a saved setting) or the fields of
            a `Merge` with one number each, and the arguments of the base model.

    Raises:
        ConfigError: without a base or a setting, or for a bad setting.
    """
    rest = dict(given)
    base = rest.pop("base", None)
    if not isinstance(base, str) or base == NAME:
        raise ConfigError(
            "--model turbovlm merges in another model of lmms-eval: name it, --model_args "
            "base=llava_hf,pretrained=...,r=16"
        )
    config = rest.pop("config", None)
    fields = {key: rest.pop(key) for key in ("r", "ratio", "method", "alpha") if key in rest}
    if config is not None:
        if fields:
            raise ConfigError(f"config is a whole setting: leave {', '.join(fields)} out")
        return base, Merge.load(config), rest
    return base, Merge.from_dict(fields), rest


def network(lm: Any) -> nn.Module:
    """The torch module inside a model of lmms-eval.

    Raises:
        ModelError: if it runs elsewhere (an API, a server).
    """
    for name in HOLDERS:
        if isinstance(found := getattr(lm, name, None), nn.Module):
            return found
    raise ModelError(
        f"{type(lm).__name__} holds no torch model, so that nothing can be merged in it: choose "
        "a base that runs here, e.g. base=llava_hf"
    )


class Turbo(require("lmms_eval.api.model", "lmms").lmms):  # type: ignore[misc]
    """Builds the base model and merges in it; the base model itself then runs."""

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> Any:
        """The base model, merged.

        Args:
            arg_string: ``base=...,r=16,...``, see `split_arguments`.
            additional_config: of lmms-eval, for the base model.

        Raises:
            ConfigError: see `split_arguments`.
            ModelError: see `network`.
            TurboError: whatever `turbovlm.apply` refuses.
        """
        lmms_eval = importlib.import_module("lmms_eval")
        given = lmms_eval.utils.simple_parse_args_string(arg_string)
        base, merge, rest = split_arguments(given)
        kind = importlib.import_module("lmms_eval.models").get_model(base)
        added = {k: v for k, v in (additional_config or {}).items() if v is not None}
        lm = kind(**rest, **added)
        turbovlm.apply(network(lm), merge)
        return lm
