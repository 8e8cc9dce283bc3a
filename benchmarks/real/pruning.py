"""Structured pruning as UPop's: channels out of the heads of attention and out of MLPs.

The graph of what depends on what, the importance and the ranking over all layers are those of
torch-pruning (`pip install torch-pruning`). The number of heads and the width of the model stay.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm_workbench.paper.upop import (
    NarrowAttention,
    UPopCaptioner,
    UPopCaptionerConfig,
    layers_to_narrow,
)

LEAST = 0.1
"""Share of a layer's channels that stays in any case."""


def prune_channels(
    model: nn.Module,
    run: Callable[[Any, Any], Tensor],
    inputs: Any,
    heads: Mapping[nn.Linear, int],
    share: float,
) -> None:
    """Remove the channels of least importance inside attention and MLPs, in place.

    Importance is the first-order change of a loss, so the weights must hold gradients. What
    else a module remembers of its widths is left to the caller.

    Args:
        model: a transformer.
        run: runs it on the inputs and returns a tensor that depends on every layer.
        inputs: some, to trace the graph with.
        heads: the layers that make queries, keys and values, and of how many heads; a head's
            channels go from all heads, and from its queries, keys and values, alike.
        share: of the channels of all heads and MLPs together.
    """
    import torch_pruning

    roots = _roots(model, heads)
    fixed: list[nn.Module] = [
        m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m not in roots
    ]
    counts: dict[nn.Module, int] = {layer: number for layer, number in heads.items()}  # noqa: C416
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of cls and positions, which stay
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs,
            importance=torch_pruning.importance.GroupTaylorImportance(),
            global_pruning=True,
            isomorphic=True,  # heads are ranked among heads, MLPs among MLPs
            pruning_ratio=share,
            max_pruning_ratio=1 - LEAST,
            ignored_layers=fixed,
            num_heads=counts,
            forward_fn=run,
        )
        pruner.step()
    model.zero_grad()


def _roots(model: nn.Module, heads: Mapping[nn.Linear, int]) -> Collection[nn.Module]:
    """Layers whose outputs are channels inside a branch: queries, keys, values, first of an MLP."""
    first = {"fc1", "intermediate.dense"}
    named = {m for n, m in model.named_modules() if any(n.endswith(f".{end}") for end in first)}
    return named | set(heads)


def pruned_vit(model: Any, pixels: Tensor, share: float) -> Any:
    """A ViT of timm without a share of its channels.

    Args:
        model: with a classifier; it is not changed.
        pixels: ``(B, 3, H, W)`` photographs without labels: the loss is that of the model's own
            first choice.
        share: as in `prune_channels`.
    """
    model = copy.deepcopy(model)
    for part in pixels.split(16):
        logits = model(part)
        nn.functional.cross_entropy(logits, logits.argmax(-1), reduction="sum").backward()
    heads = {block.attn.qkv: block.attn.num_heads for block in model.blocks}
    prune_channels(model, lambda m, x: m(x), pixels[:1], heads, share)
    for attention in (block.attn for block in model.blocks):
        before, attention.attn_dim = attention.head_dim, attention.proj.in_features
        attention.head_dim = attention.attn_dim // attention.num_heads
        # fused attention scales by the head's width, which has changed
        with torch.no_grad():
            factor = (attention.head_dim / before) ** 0.5
            attention.qkv.weight[: attention.attn_dim] *= factor
            attention.qkv.bias[: attention.attn_dim] *= factor
    return model.requires_grad_(False)


def pruned_blip(
    model: Any, loss: Callable[[Any], Tensor], run: Callable[[Any, Any], Tensor], share: float
) -> UPopCaptioner:
    """A BLIP captioner without a share of its channels, in the layers of `UPopCaptioner`.

    Args:
        model: of transformers; it is not changed.
        loss: of some captions.
        run, share: as in `prune_channels`; the inputs are None.
    """
    work = copy.deepcopy(model)
    for block in work.vision_model.encoder.layers:
        # the same function, written so that torch-pruning can follow a joint projection
        whole = block.self_attn
        block.self_attn = NarrowAttention(whole.config, whole.head_dim)
        block.self_attn.load_state_dict(whole.state_dict())
    work.eval().requires_grad_(True)
    loss(work).backward()
    heads: dict[nn.Linear, int] = {}
    for name, layer, parts in layers_to_narrow(work):
        if layer == "qkv":
            heads[work.get_submodule(f"{name}.{layer}")] = parts // 3
        elif layer == "self.query":
            for kind in ("query", "key", "value"):
                heads[work.get_submodule(f"{name}.self.{kind}")] = parts
    full = {name: _rows(work, name, layer) // parts for name, layer, parts in _layers(work)}
    prune_channels(work, run, {"pixel_values": torch.zeros(1, 3, 224, 224)}, heads, share)
    widths = {name: _rows(work, name, layer) // parts for name, layer, parts in _layers(work)}
    for name, layer, _ in _layers(work):
        if layer == "self.query":  # UPop's text layers scale by the width that is left
            query: Any = work.get_submodule(f"{name}.{layer}")
            with torch.no_grad():
                query.weight *= (widths[name] / full[name]) ** 0.5
                query.bias *= (widths[name] / full[name]) ** 0.5
    config: Any = UPopCaptionerConfig(**{**model.config.to_dict(), "widths": widths})
    result = UPopCaptioner(config)
    result.load_state_dict(work.state_dict())
    return result.eval()


def _layers(model: nn.Module) -> list[tuple[str, str, int]]:
    return list(layers_to_narrow(model))


def _rows(model: nn.Module, name: str, layer: str) -> int:
    weight: Any = model.get_submodule(f"{name}.{layer}").weight
    return weight.shape[0]
