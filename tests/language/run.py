"""Running a model of the zoo, reduced or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import turbovlm
from tests.language.build import WORDS, Inputs
from tests.language.zoo import Case
from turbovlm.config.visual_tokens import VisualTokens
from turbovlm.plug.language.state import LanguagePatch
from turbovlm.plug.language.trace import VisualTrace
from turbovlm.plug.state import Recorder
from turbovlm.plug.swap import site_of

NEW = 5


def reduced(model: Any, keep: float | int | None = 0.25, **options: Any) -> Any:
    """The same model, recording."""
    turbovlm.apply(model, VisualTokens(keep=keep, **options))
    Recorder(patch_of(model)).__enter__()
    return model


def patch_of(model: Any) -> LanguagePatch:
    """The patch of a reduced model."""
    return next(site.patch for m in model.modules() if (site := site_of(m)) is not None)


def trace_of(model: Any) -> VisualTrace:
    """What the last prompt lost."""
    trace = patch_of(model).recorders[0].found()
    assert isinstance(trace, VisualTrace)
    return trace


def generated(model: Any, inputs: Inputs, **options: Any) -> Tensor:
    """``(B, NEW)`` new tokens."""
    options = {"max_new_tokens": NEW, "do_sample": False} | options
    out = model.generate(**inputs, **options)
    return out[:, inputs["input_ids"].shape[1] :]


def longer(case: Case, inputs: Inputs, new: Tensor) -> Inputs:
    """The prompt and what follows it."""
    ones = torch.ones_like(new)
    out = inputs | {
        "input_ids": torch.cat([inputs["input_ids"], new], 1),
        "attention_mask": torch.cat([inputs["attention_mask"], ones], 1),
    }
    if case.types is not None:
        out[case.types] = torch.cat([inputs[case.types], case.typed[1] * ones], 1)
    return out


def without_cache(case: Case, model: Any, inputs: Inputs) -> Tensor:
    """Greedy decoding that runs the whole prompt anew for each word."""
    current = inputs
    for _ in range(NEW):
        logits = model(**current, use_cache=False).logits
        current = longer(case, current, logits[:, -1:, :WORDS].argmax(-1))
    return current["input_ids"][:, -NEW:]


def alone_of(case: Case, batch: Inputs, b: int, count: int) -> Inputs:
    """One sample of ``case.inputs(1, 2)`` without its padding."""
    real = batch["attention_mask"][b].bool()
    along = batch["input_ids"].shape
    out = {n: v[b : b + 1, real] for n, v in batch.items() if v.shape == along}
    images = {n: v for n, v in batch.items() if n not in out}
    for name, value in images.items():
        if len(value) == 2:  # laid out by sample
            out[name] = value[b : b + 1, :count]
        elif name == "pixel_values" and "image_grid_thw" in images:
            rows = images["image_grid_thw"].prod(1).tolist()
            first = sum(rows[:1]) if b else 0
            out[name] = value[first : first + sum(rows[b : b + count])]
        else:  # by image, or by tile
            per = len(value) // 3
            out[name] = value[b * per : (b + count) * per]
    return out
