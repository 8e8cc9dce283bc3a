"""A model by its name but without its weights, and an input that it can run.

From the architecture alone: no checkpoint is read. On the meta device nothing is in memory.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import ConfigError, ModelError, require
from turbovlm.hosts.language import ROWS
from turbovlm.measure.flops import flops
from turbovlm_workbench.checkpoint import cause
from turbovlm_workbench.load.picture import is_native
from turbovlm_workbench.paper import register_paper_models

TEXT_TOKENS = 32
"""Length of the text, where a transformers model needs one beside the image."""
DEFAULT_SIZE = 224
"""Side of the image in pixels, where the configuration does not say it."""
TEXTS = ("input_ids", "decoder_input_ids", "qformer_input_ids")
NAMES = "a local folder with its config.json, timm:NAME, torchvision:NAME or open_clip:NAME"


@dataclass(frozen=True)
class Skeleton:
    """A model without weights, in evaluation mode.

    Attributes:
        name: the name it was built by.
        model: the whole model, or its vision tower where the whole cannot be run.
        inputs: keyword arguments of one forward, ``model(**inputs)``: one image
            ``(1, 3, size, size)``, and text ``(1, T)`` where the model needs it; empty where
            no such inputs are known.
        what: what that forward runs, in words.
        whole: the whole model, where ``model`` is its tower.
    """

    name: str
    model: nn.Module
    inputs: Mapping[str, Tensor]
    what: str
    whole: nn.Module | None = None


def skeleton(
    name: str, device: str | torch.device = "meta", *, size: int | None = None
) -> Skeleton:
    """Build a model from its name alone, and what to feed it.

    The result always has inputs; `outline` is the same for models that are only to be looked at.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, ``open_clip:NAME``, a local folder with a
            ``config.json``, or a hub id of transformers, of which only the configuration is
            fetched.
        device: where it is built. Anywhere but on ``"meta"`` its weights are random, as its
            library initialises them.
        size: side of the image in pixels; None is the model's own.

    Raises:
        ModelError: for an unknown name, a configuration out of reach, a model that
            takes no images, or one that does not run from an image and text alone.
        MissingExtra: if the library is not installed.
        ConfigError: for a size below 1.
    """
    on_meta = outline(name, device, size=size)
    if not on_meta.inputs:
        raise ModelError(
            f"{name} cannot be run from an image and text alone ({on_meta.what}): check the size, "
            "or build it in Python and use turbovlm.flops"
        )
    return on_meta


def outline(name: str, device: str | torch.device = "meta", *, size: int | None = None) -> Skeleton:
    """As `skeleton`, but where a model needs other inputs than an image and text (sound, text
    alone, packed patches), it comes without any: its blocks can be looked at all the same.

    Raises:
        ModelError, MissingExtra, ConfigError: as `skeleton`, unless it is only the inputs.
    """
    if size is not None and size < 1:
        raise ConfigError(f"the image must be at least 1 pixel wide, got {size}")
    library, colon, short = name.partition(":")
    builders = {"timm": _timm, "torchvision": _torchvision, "open_clip": _open_clip}
    with torch.device(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if Path(name).is_dir() or not colon:
            return _transformers(name, size)
        if library not in builders:
            raise ModelError(f"no library {library!r} for {name!r}: give {NAMES}, or a hub id")
        return builders[library](short, size)


def _timm(name: str, size: int | None) -> Skeleton:
    timm = require("timm", "timm")
    check_known("timm", name.split(".")[0], timm.list_models())
    with _building(f"timm:{name}"):
        model = timm.create_model(name)
        if size is not None and hasattr(model, "set_input_size"):  # others run at any size
            model = timm.create_model(name, img_size=size)
    return _library(f"timm:{name}", model, size or model.pretrained_cfg["input_size"][-1], "x")


def _torchvision(name: str, size: int | None) -> Skeleton:
    models = require("torchvision.models", "timm")
    check_known("torchvision", name, models.list_models(models))
    with _building(f"torchvision:{name}"):
        model = models.get_model(name)
        if size is not None and hasattr(model, "image_size"):  # others run at any size
            model = models.get_model(name, image_size=size)
    side: Any = getattr(model, "image_size", size or DEFAULT_SIZE)
    return _library(f"torchvision:{name}", model, side, "x")


def _open_clip(name: str, size: int | None) -> Skeleton:
    open_clip = require("open_clip", "open_clip")
    check_known("open_clip", name, open_clip.list_models())
    options = {"load_weights": False, "pretrained_text": False, "force_image_size": size}
    with _building(f"open_clip:{name}"), silent():  # it warns that weights are missing
        model = open_clip.create_model(name, device=torch.get_default_device(), **options)
    texts = torch.zeros(1, model.context_length, dtype=torch.long)
    return _library(f"open_clip:{name}", model, model.visual.image_size, "image", {"text": texts})


def _library(
    name: str,
    model: nn.Module,
    size: int | tuple[int, int],
    image: str,
    texts: Mapping[str, Tensor] | None = None,
) -> Skeleton:
    """The skeleton of a model whose inputs its library fixes, once they have been tried."""
    inputs = {image: _image(size), **(texts or {})}
    return _tried(name, model.eval(), inputs)


def _tried(name: str, model: nn.Module, inputs: Mapping[str, Tensor]) -> Skeleton:
    """With these inputs if the model runs on them, else without."""
    try:
        flops(model, inputs)
    except Exception as error:  # libraries raise whatever a size or a missing argument leads to
        return Skeleton(name, model, {}, f"{type(model).__name__}, not run: {cause(error)}")
    return Skeleton(name, model, inputs, _words(model, inputs))


def _transformers(name: str, size: int | None) -> Skeleton:
    """The whole model from an image, or from an image and text, or else its vision tower."""
    transformers = require("transformers", "hf")
    register_paper_models()
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, and whatever a broken file leads to
        raise ModelError(f"no configuration of {name!r} ({cause(error)}): give {NAMES}") from error
    vision = getattr(config, "vision_config", config)
    kind = _kind(transformers, config)
    if size is not None and not _takes_any_size(kind, config):
        vision.image_size = size
    with _building(name):
        model = kind(config).eval()
    if "pixel_values" not in inspect.signature(model.forward).parameters:
        return Skeleton(name, model, {}, f"{type(model).__name__}, not run: it takes no images")
    image = {"pixel_values": _image(getattr(vision, "image_size", None) or DEFAULT_SIZE)}
    for keys in ((), TEXTS[:1], TEXTS):
        with suppress(Exception):  # every model asks in its own way for what it lacks
            inputs = {**image, **_texts(model, keys, **image)}
            flops(model, inputs)
            return Skeleton(name, model, inputs, _words(model, inputs))
    tower = model.get_encoder("image")
    alone = _tried(name, tower, image)
    if not alone.inputs or tower is model:
        return replace(alone, model=model)
    what = f"{alone.what}, not the whole {type(model).__name__}"
    return replace(alone, what=what, whole=model)


def _takes_any_size(kind: type[nn.Module], config: Any) -> bool:
    """Whether pictures are cut in tiles or patches, so that their size is not the model's."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    row = next((row for row in ROWS if name in (row.outer, *row.heads)), None)
    return row is not None and is_native(row, config)


def _kind(transformers: Any, config: Any) -> Any:
    """The class that the checkpoint was saved from, else the plain model of this configuration."""
    for built in getattr(config, "architectures", None) or ():
        if hasattr(transformers, built):
            return getattr(transformers, built)
    return transformers.MODEL_MAPPING[type(config)]


def _texts(model: Any, keys: Sequence[str], pixel_values: Tensor) -> dict[str, Tensor]:
    """Ids for those texts that the forward takes, with room for what stands for the image."""
    takes = inspect.signature(model.forward).parameters
    texts = {key: torch.zeros(1, TEXT_TOKENS, dtype=torch.long) for key in keys if key in takes}
    if not texts or getattr(model.config, "image_token_id", None) is None:
        return texts
    found: list[Any] = []
    flops(model, (), call=lambda m, _: found.append(m.get_image_features(pixel_values)))
    features = getattr(found[0], "pooler_output", found[0])
    parts = [features] if torch.is_tensor(features) else features
    count = sum(part.shape[:-1].numel() for part in parts)
    image = torch.full((1, count), model.config.image_token_id)
    return {**texts, "input_ids": torch.cat([image, texts["input_ids"]], dim=1)}


def _image(size: int | Sequence[int]) -> Tensor:
    """One image ``(1, 3, H, W)``; its values are random, and the same every time."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(1, 3, height, width)


def _words(model: nn.Module, inputs: Mapping[str, Tensor]) -> str:
    """``"CLIPModel: one image of 224 px, text of 32 tokens"``."""
    image, *texts = inputs.values()
    height, width = image.shape[-2:]
    side = str(height) if height == width else f"{height} x {width}"
    text = f", text of {' + '.join(str(t.shape[1]) for t in texts)} tokens" if texts else ""
    return f"{type(model).__name__}: one image of {side} px{text}"


def check_known(library: str, name: str, known: Iterable[str]) -> None:
    """Raise `ModelError` with the closest names unless ``library`` knows ``name``."""
    known = list(known)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"see {library}'s list_models()"
        raise ModelError(f"{library} has no model {name!r}: {hint}")


@contextmanager
def _building(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # libraries raise whatever a size or a configuration leads to
        raise ModelError(
            f"{name} cannot be built and run from its name ({cause(error)}): check the size, or "
            "build it in Python and use turbovlm.flops"
        ) from error


@contextmanager
def silent() -> Iterator[None]:
    """No log messages: what goes wrong inside is raised. The level is put back."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(before)
