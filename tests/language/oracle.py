"""The same tokens hidden from everybody by the attention mask, positions as they were.

Nothing here uses the code that shortens a prompt: the unreduced language model runs on the whole
prompt, with the averages of merged tokens in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.plug.language.trace import VisualTrace

MASKED = ("full_attention", "sliding_attention")


def language_of(model: Any) -> nn.Module:
    inner = getattr(model, "model", model)
    return getattr(inner, "language_model", None) or inner.text_model


def handed(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the unreduced model hands to its language model."""
    seen: dict[str, Any] = {}

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    handle = language_of(model).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        model.model(**inputs)
    finally:
        handle.remove()
    seen.pop("cache", None)  # full of this very prompt
    return seen


def stays(inputs: dict[str, Any], trace: VisualTrace) -> Tensor:
    """``(B, N)`` bool: tokens of the prompt that were not dropped; padding is not one."""
    stay = inputs["attention_mask"].bool().clone()
    for image in trace.images:
        stay[image.sample, image.column] = False
        stay[image.sample, image.column[image.kept]] = True
    return stay


def averaged(x: Tensor, trace: VisualTrace) -> Tensor:
    """``(B, N, C)`` with what was merged into each kept token averaged in."""
    out = x.clone()
    for image in trace.images:
        for k in image.kept.tolist():
            members = image.column[(image.owner == k) & image.merged]
            out[image.sample, image.column[k]] = x[image.sample, members].mean(0)
    return out


def hidden_states(model: Any, inputs: dict[str, Any], trace: VisualTrace) -> list[Tensor]:
    """Per sample ``(L, C)``: the last hidden states of the tokens that stay."""
    given, stay = handed(model, inputs), stays(inputs, trace)
    x = given["inputs_embeds"] = averaged(given["inputs_embeds"], trace)
    visual = given.get("visual_pos_masks")
    if visual is not None:
        given["deepstack_visual_embeds"] = [
            averaged(x.new_zeros(x.shape).masked_scatter(visual.unsqueeze(-1), d), trace)[visual]
            for d in given["deepstack_visual_embeds"]
        ]
    if given.get("position_ids") is None:
        given["position_ids"] = torch.arange(x.shape[1]).unsqueeze(0)
    given["attention_mask"] = _hide(given.get("attention_mask"), stay)
    out = language_of(model)(**given).last_hidden_state
    return [row[s] for row, s in zip(out, stay, strict=True)]


def shortened(model: Any, inputs: dict[str, Any], trace: VisualTrace) -> list[Tensor]:
    """For language models that are no attention alone: run on one shortened sample at a time."""
    given, stay = handed(model, inputs), stays(inputs, trace)
    x = averaged(given["inputs_embeds"], trace)
    out = []
    for b, s in enumerate(stay):
        position = given["position_ids"][:, b : b + 1, s]
        whole = language_of(model)(inputs_embeds=x[b : b + 1, s], position_ids=position)
        out.append(whole.last_hidden_state[0])
    return out


def _hide(mask: Any, stay: Tensor) -> Any:
    """A mask of any form without the columns that do not stay."""
    if isinstance(mask, dict):
        return {kind: _square(m, stay) for kind, m in mask.items()}
    if isinstance(mask, Tensor) and mask.dim() == 4:
        return _square(mask, stay)
    return stay.long()


def _square(mask: Tensor | None, stay: Tensor) -> Tensor:
    tokens = stay.shape[1]
    if mask is None:
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]
    if mask.dtype == torch.bool:
        return mask & stay[:, None, None]
    return mask.masked_fill(~stay[:, None, None], torch.finfo(mask.dtype).min)
