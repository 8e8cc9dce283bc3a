"""turbovlm: make vision-language models faster without retraining.

    import turbovlm

    turbovlm.apply(model, turbovlm.Merge(r=16))              # in place
    turbovlm.apply(pipe, turbovlm.MergeRestore(ratio=0.3))   # a pipeline of diffusers
    turbovlm.apply(vlm, turbovlm.VisualTokens(keep=0.25))    # fewer tokens for a language model
    turbovlm.remove(model)                                   # exactly as before

Names are loaded on first use, so that ``import turbovlm`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turbovlm.api import applied, apply, recording, remove
    from turbovlm.config import Merge, MergeRestore, VisualTokens
    from turbovlm.errors import TurboError
    from turbovlm.hosts import register
    from turbovlm.kernels import use_kernels
    from turbovlm.maths.score import score
    from turbovlm.maths.selectors import selector
    from turbovlm.measure import flops, throughput
    from turbovlm.plug.denoiser.row import Denoiser
    from turbovlm.plug.encoder.row import Row
    from turbovlm.plug.fuse import fuse_attention, unfuse_attention
    from turbovlm.reducers import register_reducer

__version__ = "0.1.0"

_HOME = {
    "Denoiser": "plug.denoiser.row",
    "Merge": "config",
    "MergeRestore": "config",
    "Row": "plug.encoder.row",
    "TurboError": "errors",
    "VisualTokens": "config",
    "applied": "api",
    "apply": "api",
    "flops": "measure",
    "fuse_attention": "plug.fuse",
    "recording": "api",
    "register": "hosts",
    "register_reducer": "reducers",
    "remove": "api",
    "score": "maths.score",
    "selector": "maths.selectors",
    "throughput": "measure",
    "unfuse_attention": "plug.fuse",
    "use_kernels": "kernels",
}

__all__ = [
    "Denoiser",
    "Merge",
    "MergeRestore",
    "Row",
    "TurboError",
    "VisualTokens",
    "applied",
    "apply",
    "flops",
    "fuse_attention",
    "recording",
    "register",
    "register_reducer",
    "remove",
    "score",
    "selector",
    "throughput",
    "unfuse_attention",
    "use_kernels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'turbovlm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"turbovlm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
