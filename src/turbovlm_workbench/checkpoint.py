"""Published checkpoints: read as data only, and compared key by key before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from turbovlm.errors import InputError, ModelError

WRAPPINGS = ("state_dict", "model")  # keys under which training scripts keep the weights
# BLIP's and BLIP-2's vision encoders: transformers -> published (timm's names), in this order
VISION_NAMES = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "encoder.layers.": "blocks.",
    "self_attn.projection.": "attn.proj.",
    "self_attn.": "attn.",
    "layer_norm": "norm",
}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or a pickled (.pth, .pt, .bin) checkpoint, on the CPU.

    Pickles are read as data only, without running code from them. A table inside a table, as in
    ``{"model": ..., "epoch": 3}``, is taken out.

    Raises:
        ModelError: if the file is missing or is not a checkpoint.
    """
    if not path.is_file():
        raise ModelError(f"no weights file {path}: check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and pickle each raise many kinds
        raise ModelError(
            f"cannot read weights from {path} ({cause(error)}): give a .safetensors file, or a "
            ".pth file that holds only tensors"
        ) from error
    for key in WRAPPINGS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(value, Tensor) for value in tensors):
        raise ModelError(f"{path} holds no table of tensors: save model.state_dict()")
    return content


def check_fit(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    path: Path,
    name: str,
    fix: str = "give the architecture that these weights were trained in",
) -> None:
    """Compare keys, shapes and kinds of numbers; one error tells all kinds of difference.

    Args:
        state: what the file holds.
        wanted: what the model needs, under the same names; only shapes are looked at, so the
            tensors may be on the meta device.
        path: the file, for the message.
        name: the model, for the message.
        fix: what to do about it.

    Raises:
        ModelError: if a key is missing or unknown, has another shape, or holds another kind of
            numbers: integers, say, of quantised weights, where real numbers belong.
    """
    missing = sorted(set(wanted) - set(state))
    unknown = sorted(set(state) - set(wanted))
    shapes = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    kinds = [
        f"{key} is {_text(state[key].dtype)} instead of {_text(wanted[key].dtype)}"
        for key in wanted
        if key in state and _kind(state[key]) != _kind(wanted[key])
    ]
    if missing or unknown or shapes or kinds:
        problems = [f"{len(missing)} keys are missing ({missing[0]}, ...)"] if missing else []
        problems += [f"{len(unknown)} are unknown ({unknown[0]}, ...)"] if unknown else []
        problems += [f"{len(shapes)} have another shape ({shapes[0]})"] if shapes else []
        problems += [f"{len(kinds)} hold other numbers ({kinds[0]})"] if kinds else []
        raise ModelError(f"{path} does not fit {name}: {'; '.join(problems)}: {fix}")


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Copy ``state`` into ``model``, or raise as `check_fit` does and leave it as it was."""
    check_fit(state, model.state_dict(), path, name)
    model.load_state_dict(state)


def resample_positions(positions: Tensor, tokens: int) -> Tensor:
    """Position embeddings ``(1, 1 + g^2, C)`` for another square grid, bicubic; cls keeps its own.

    What is no such grid is returned as it is, for `check_fit` to name.
    """
    old, new = isqrt(max(positions.shape[1] - 1, 0)), isqrt(tokens - 1)
    if positions.ndim != 3 or old**2 != positions.shape[1] - 1 or old == new:
        return positions
    grid = positions[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat((positions[:, :1].float(), grid.flatten(2).transpose(1, 2)), dim=1)


def check_new(folder: Path) -> None:
    """Raise `InputError` unless ``folder`` is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder: give a new one")


def write_folder(model: Any, folder: Path, side: int) -> None:
    """Save a BLIP of transformers and its image processor, for square images of ``side`` px.

    Images are resized whole, bicubic, with CLIP's mean and spread, as in BLIP's evaluations.
    """
    from transformers import BlipImageProcessor

    processor = BlipImageProcessor(size={"height": side, "width": side})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def cause(error: Exception) -> str:
    """The first line of an error, short enough for one line of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 160 else lines[0][:157] + "..."
