"""lmms-eval on a model with fewer tokens: its tasks, its models, and one more argument.

    lmms-eval --model turbovlm --tasks gqa \\
        --model_args base=llava_hf,pretrained=llava-hf/llava-1.5-7b-hf,keep=0.25

lmms-eval finds this module by an entry point; nothing else of turbovlm imports it.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

import turbovlm
from turbovlm.errors import ModelError, require
from turbovlm_workbench.run.lmms_arguments import NAME, split_arguments

HOLDERS = ("_model", "model")  # where the models of lmms-eval keep the network


def manifest() -> Any:
    """What lmms-eval registers: the model type ``turbovlm``."""
    registry = importlib.import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.Turbo")


def network(lm: Any) -> nn.Module:
    """The torch module inside a model of lmms-eval.

    Raises:
        ModelError: if it runs elsewhere (an API, a server).
    """
    for name in HOLDERS:
        if isinstance(found := getattr(lm, name, None), nn.Module):
            return found
    raise ModelError(
        f"{type(lm).__name__} holds no torch model, so that no tokens can be reduced in it: "
        "choose a base that runs here, e.g. base=llava_hf"
    )


class Turbo(require("lmms_eval.api.model", "lmms").lmms):  # type: ignore[misc]
    """Builds the base model and applies the settings; the base model itself then runs."""

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> Any:
        """The base model with fewer tokens.

        Args:
            arg_string: ``base=...,keep=0.25,...``, see `split_arguments`.
            additional_config: of lmms-eval, for the base model.

        Raises:
            ConfigError: see `split_arguments`.
            ModelError: see `network`.
            TurboError: whatever `turbovlm.apply` refuses.
        """
        lmms_eval = importlib.import_module("lmms_eval")
        given = lmms_eval.utils.simple_parse_args_string(arg_string)
        base, settings, rest = split_arguments(given)
        kind = importlib.import_module("lmms_eval.models").get_model(base)
        added = {k: v for k, v in (additional_config or {}).items() if v is not None}
        lm = kind(**rest, **added)
        turbovlm.apply(network(lm), *settings)
        return lm
