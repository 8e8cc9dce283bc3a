"""Who reads what of a forward: declared by rows, asked for at the call, or watched by a hook."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import UnsupportedInput
from turbovlm.plug.encoder.row import Packing
from turbovlm.plug.encoder.state import EncoderPatch, Reading
from turbovlm.plug.names import attribute

_CAPTURING = "transformers.utils.output_capturing"
_SILENT = ("torch.distributed.", "accelerate.")
"""Libraries whose hooks move weights and never look at a block's output."""


def reading_of(
    patch: EncoderPatch, tower: nn.Module, entry: str, given: Mapping[str, Any]
) -> Reading:
    """What is read of the call of a tower's method.

    Args:
        patch: of the tower.
        tower: the encoder.
        entry: the method. Where no reader is known around the tower, any but ``forward`` hands
            the tokens on to an unknown one.
        given: its arguments by name.

    Raises:
        UnsupportedInput: if attention maps are asked for, which would be those of merged tokens.
    """
    if _asked(tower, given, "output_attentions"):
        raise UnsupportedInput(
            "attention maps were asked for (output_attentions=True; word timestamps need them): "
            "those of merged tokens do not fit the positions; turbovlm.remove(model) first"
        )
    states = _asked(tower, given, "output_hidden_states")
    every = states is True
    layers: frozenset[int] = frozenset()
    if states and not every:
        indices = [states] if isinstance(states, int) else list(states)
        # entry 0 is what enters the first block
        layers = frozenset(index % (patch.depth + 1) - 1 for index in indices)
    packed = patch.row.packed
    if packed is not None and packed.reads is not None:
        layers |= set(attribute(tower, packed.reads))
    masks = [given.get(name) for name in patch.row.padding]
    decodes = patch.row.decodes is not None and bool(given.get(patch.row.decodes))
    return Reading(
        every=every,
        layers=layers,
        last=patch.facts.last
        or (entry != "forward" and not patch.facts.around)
        or bool(tower._forward_hooks),
        padding=bool(masks)
        and all(m is None or (isinstance(m, Tensor) and m.dim() < 4) for m in masks),
        decodes=decodes,
        images=() if packed is None else _images(packed, tower, given),
    )


def _images(packed: Packing, tower: nn.Module, given: Mapping[str, Any]) -> tuple[int, ...]:
    """Patches of each image, or frame of a video."""
    grid = given.get(packed.grid)
    if packed.side is None:
        rows = [] if grid is None else grid.tolist()
        return tuple(h * w for frames, h, w in rows for _ in range(frames))
    side = attribute(tower, packed.side)
    if grid is None:  # all of one size
        pixels: Tensor = given["pixel_values"]
        grid = [tuple(pixels.shape[-2:])] * len(pixels)
    return tuple((h // side) * (w // side) for h, w in torch.as_tensor(grid).tolist())


def _asked(tower: nn.Module, given: Mapping[str, Any], name: str) -> Any:
    """An argument of the call, else what the tower's configuration says, as transformers has it."""
    value = given.get(name)
    return getattr(getattr(tower, "config", None), name, False) if value is None else value


def watched(block: nn.Module) -> bool:
    """Whether a forward hook may look at the output of this block now."""
    return any(_looks(hook) for hook in block._forward_hooks.values())


def _looks(hook: Any) -> bool:
    home = getattr(hook, "__module__", None) or type(hook).__module__
    if home.startswith(_SILENT):
        return False
    if home != _CAPTURING:
        return True
    # transformers leaves its hooks on for good: they look only while a collector is open
    collector = getattr(sys.modules.get(_CAPTURING), "_active_collector", None)
    return collector is None or collector.get() is not None
