"""A tower: its forward opens the state of a call and closes it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from turbovlm.plug.encoder.readers import reading_of
from turbovlm.plug.encoder.state import EncoderCall, EncoderPatch
from turbovlm.plug.names import bind


@dataclass(frozen=True)
class TowerSite:
    """An encoder: its patch, the class it had, and the arguments of its entries by name."""

    patch: EncoderPatch
    host: type[nn.Module]
    names: Mapping[str, tuple[str, ...]]


class TurboTower(nn.Module):
    """Mixed in front of the encoder's class; its entries go through `turbo_enter`."""

    turbo_site: TowerSite

    def turbo_enter(
        self, name: str, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """Run the host's method ``name`` with a call open for the blocks inside.

        Raises:
            UnsupportedInput: if attention maps are asked for, or the block did not run that
                gives all positions back.
        """
        site = self.turbo_site
        patch = site.patch
        running = patch.current()
        if running is not None and running.declared:  # one entry calls another
            return function(self, *args, **kwargs)
        if not torch.compiler.is_compiling():
            patch.memory.sweep()
        given = bind(site.names[name], args, dict(kwargs))
        call = EncoderCall(reading_of(patch, self, name, given), declared=True)
        before = patch.begin(call)
        try:
            out = function(self, *args, **kwargs)
            patch.finish(call)
        finally:
            patch.end(before)
        return out
