"""Sliding windows: a window of the prompt stays one, whatever went out of it."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor


def windowed(language: Any, given: dict[str, Any], cache: Any, past: Any) -> Any:
    """The mask that the language model would make of all tokens, if a window cuts into them.

    Made after the tokens went, a window of 4096 would reach further back than 4096 tokens of the
    prompt.

    Args:
        language: the language model.
        given: its arguments for all tokens.
        cache: seen from outside.
        past: tokens in it.

    Returns:
        The mask it was given, or a mask ``(B, 1, N, columns)``, or one by kind of layer.
    """
    mask, window = given.get("attention_mask"), getattr(language.config, "sliding_window", None)
    kinds = getattr(language.config, "layer_types", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return mask
    x = given.get("inputs_embeds")
    flat = mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)
    if x is None or not flat or int(past) + x.shape[1] <= window:
        return mask
    # imported here: the model is one of transformers, so that it is there
    masking = importlib.import_module("transformers.masking_utils")
    return masking.create_masks_for_generate(
        config=language.config, inputs_embeds=x, attention_mask=mask, cache=cache
    )
