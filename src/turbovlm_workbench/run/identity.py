"""What a model is by its content: weights, configuration, preprocessing and words.

Two runs belong together if this is equal. A file name is not enough: a checkpoint can be
overwritten in place, and a hub id can get other weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from turbovlm_workbench.data.content import LENGTH
from turbovlm_workbench.load.own_size import Pictures
from turbovlm_workbench.load.prepare import Prepare

# Of configurations: where they came from and who wrote them, which changes nothing.
ORIGIN = ("_name_or_path", "name_or_path", "transformers_version", "_diffusers_version")
ORIGIN += ("_commit_hash", "_class_name", "_use_default_values")
SENTENCE = 'A man\'s 2 dogs, under-water: "très vite"!'
GRID = 4  # cells of a side in which preprocessed pixels are averaged


def model_digest(parts: Mapping[str, Any]) -> str:
    """A digest of everything that answers depend on beside the data.

    Args:
        parts: by any name: modules (all their tensors are read), `Prepare`, tokenizers,
            schedulers and other objects with a configuration; None is no part.
    """
    whole = hashlib.sha256()
    for name in sorted(parts):
        whole.update(f"{name}: {type(parts[name]).__name__}\n".encode())
        _add(whole, parts[name])
    return whole.hexdigest()[:LENGTH]


def _add(whole: Any, part: Any) -> None:
    if isinstance(part, Prepare):
        whole.update(_json(_probe(part)))
        return
    if isinstance(part, nn.Module):
        _add_tensors(whole, part)
        whole.update(_json(_configuration(getattr(part, "generation_config", None))))
    if callable(words := getattr(part, "get_vocab", None)):
        whole.update(_json(words()))
    if "Tokenizer" in type(part).__name__:
        whole.update(_json(_ids(part)))
    whole.update(_json(_configuration(getattr(part, "config", None))))


def _add_tensors(whole: Any, model: nn.Module) -> None:
    seen = set[tuple[int, torch.Size]]()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        key = tensor.data_ptr(), tensor.shape
        if key in seen:  # tied weights are read once
            continue
        seen.add(key)
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        if flat.numel():
            whole.update(flat.view(torch.uint8).numpy().data)


def _configuration(config: Any) -> Any:
    fields = config.to_dict() if callable(getattr(config, "to_dict", None)) else config
    return _without_origin(dict(fields)) if isinstance(fields, Mapping) else None


def _without_origin(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_origin(v) for k, v in value.items() if k not in ORIGIN}
    if isinstance(value, list | tuple):
        return [_without_origin(item) for item in value]
    return value


def _probe(prepare: Prepare) -> Any:
    """Means over a grid of what a fixed picture becomes; two decimals, as machines round apart."""
    rows = torch.arange(256).view(-1, 1).expand(256, 320)
    columns = torch.arange(320).view(1, -1).expand(256, 320)
    colours = torch.stack((rows, columns * 4 // 5, (rows * columns) % 256), dim=-1)
    picture = Image.fromarray(colours.to(torch.uint8).numpy())
    found = prepare([picture])
    if isinstance(found, Pictures):
        return {name: _means(value) for name, value in sorted(found.seen().items())}
    return _means(found)


def _means(pixels: Tensor) -> Any:
    values = pixels.float()
    if pixels.dim() < 4:  # patches in rows, or sizes
        values = values.reshape(1, 1, len(pixels), -1)
    means = F.adaptive_avg_pool2d(values.flatten(0, -4), GRID)
    return [list(pixels.shape), [round(value, 2) + 0.0 for value in means.flatten().tolist()]]


def _ids(tokenizer: Any) -> Any:
    """What a sentence becomes: a vocabulary alone does not say how words are cut."""
    found = tokenizer([SENTENCE])
    ids = found["input_ids"] if isinstance(found, Mapping) else found
    return ids.tolist() if isinstance(ids, Tensor) else ids


def _json(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, default=lambda other: type(other).__name__)
    return text.encode() + b"\n"
