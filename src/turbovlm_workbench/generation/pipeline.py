"""From a name to a pipeline of diffusers that draws from prompts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from turbovlm.errors import ModelError, require
from turbovlm_workbench.checkpoint import cause
from turbovlm_workbench.load.lab import lab_painter
from turbovlm_workbench.load.loaded import LoadedModel
from turbovlm_workbench.load.prepare import Prepare
from turbovlm_workbench.load.random_state import keeps_random_state

PAINTER = "lab:painter"
INDEX = "model_index.json"


def check_pipeline(name: str) -> None:
    """Find out what can be known of ``name`` before it is loaded.

    Raises:
        ModelError: for a folder that holds no pipeline, or an unknown model of the lab.
        MissingExtra: if diffusers or transformers is not installed.
    """
    require("diffusers", "diffusion")
    require("transformers", "diffusion")
    path = Path(name)
    if path.is_dir():
        try:
            index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(
                f"{name} holds no pipeline of diffusers ({INDEX}: {cause(error)}): give a folder "
                "as save_pretrained of a pipeline writes it, a hub id, or lab:painter"
            ) from error
        if not isinstance(index, dict) or "_class_name" not in index:
            raise ModelError(f"{path / INDEX} names no pipeline (_class_name): save it again")
    elif path.exists():
        raise ModelError(f"{name} is a file: give the folder of a pipeline, a hub id or {PAINTER}")
    elif name.startswith("lab:") and name != PAINTER:
        raise ModelError(f"{name} draws nothing: {PAINTER} does")


@keeps_random_state
def load_pipeline(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    image: bool = False,
) -> Any:
    """A pipeline of diffusers, quiet, on a device.

    Args:
        name: a local folder or a hub id of a pipeline, or ``lab:painter``, which is built in.
        dtype: number format of its weights.
        device: where it draws.
        image: the image-to-image pipeline of the model instead of text-to-image.

    Raises:
        ModelError: if it cannot be found or loaded, or diffusers has no such pipeline for it.
        MissingExtra: if diffusers or transformers is not installed.
    """
    check_pipeline(name)
    diffusers: Any = require("diffusers", "diffusion")
    kind = diffusers.AutoPipelineForImage2Image if image else diffusers.AutoPipelineForText2Image
    with _quiet(diffusers):
        if name == PAINTER and not Path(name).is_dir():
            pipe = lab_painter().to(dtype)
            pipe = kind.from_pipe(pipe) if image else pipe
        else:
            try:
                pipe = kind.from_pretrained(name, torch_dtype=dtype)
            except Exception as error:  # OSError, ValueError, and whatever a broken file leads to
                what = "image-to-image" if image else "text-to-image"
                raise ModelError(
                    f"cannot load {name!r} as a {what} pipeline ({cause(error)}): give a folder as "
                    f"save_pretrained of a pipeline writes it, a hub id, or {PAINTER}"
                ) from error
        pipe.to(device)
    denoiser(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser(pipe: Any) -> nn.Module:
    """The part of a pipeline that runs once a step: its UNet or transformer.

    Raises:
        ModelError: if it has neither.
    """
    for name in ("unet", "transformer"):
        if isinstance(part := getattr(pipe, name, None), nn.Module):
            return part
    raise ModelError(f"{type(pipe).__name__} has neither a unet nor a transformer: give another")


def as_loaded(pipe: Any, name: str) -> LoadedModel:
    """The denoiser of a text-to-image pipeline, which reads no images, and what it is called.

    Raises:
        ModelError: if the pipeline has no denoiser.
    """
    return LoadedModel(denoiser(pipe), Prepare(_reads_no_images, (), ()), name)


def _reads_no_images(images: Sequence[Image.Image]) -> Tensor:
    raise ModelError("a text-to-image pipeline reads no images: give prompts")


@contextmanager
def _quiet(diffusers: Any) -> Iterator[None]:
    """Without bars and notes of the libraries: ours stands for theirs."""
    logging = diffusers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # above all "torch_dtype", now "dtype": every version knows the old name
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
