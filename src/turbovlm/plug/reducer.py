"""A reducer: one kind of configuration and what it changes in a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from turbovlm.config import Setting
from turbovlm.plug.swap import Swap

Plan = Callable[[Any, Any], Sequence[Swap]]


@dataclass(frozen=True)
class Reducer:
    """How one kind of configuration is applied to a model.

    Attributes:
        config: the configuration's class.
        plan: ``(model, config)`` to the swaps that apply it; checks everything and changes
            nothing. The model is a module, or a pipeline whose parts are modules.
    """

    config: type[Setting]
    plan: Plan


def parts_of(model: Any) -> list[nn.Module]:
    """The modules of a model: itself, or those of a pipeline of diffusers."""
    if isinstance(model, nn.Module):
        return [model]
    components = getattr(model, "components", None)
    values = components.values() if isinstance(components, dict) else ()
    return [part for part in values if isinstance(part, nn.Module)]
