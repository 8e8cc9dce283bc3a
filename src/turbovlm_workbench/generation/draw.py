"""One way to draw: prompts and seeds in, pictures out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from turbovlm.errors import ConfigError, ModelError, TurboError
from turbovlm_workbench.checkpoint import cause
from turbovlm_workbench.generation.pipeline import PAINTER, denoiser
from turbovlm_workbench.load.lab import painter_defaults

MULTIPLE = 8  # pixels: what autoencoders of latent diffusion shrink a side by


@dataclass(frozen=True)
class Drawing:
    """Everything about a picture but its prompt and its noise; None leaves it to the pipeline.

    Args:
        steps: denoising steps.
        guidance: scale of classifier-free guidance.
        size: side of the square picture, in pixels.
        negative: what not to draw.
        image: where image-to-image begins, in mode RGB; it is cut to the size.
        strength: how much of ``image`` may change, above 0 up to 1.

    Raises:
        ConfigError: for a value out of range, or a strength without an image.
    """

    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    negative: str | None = None
    image: Image.Image | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"--steps must be at least 1, got {self.steps}")
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise ConfigError(f"--guidance must be 0 or more, got {self.guidance}")
        if self.size is not None and (self.size < MULTIPLE or self.size % MULTIPLE):
            raise ConfigError(f"--size must be a multiple of {MULTIPLE} pixels, got {self.size}")
        if self.strength is None:
            return
        if self.image is None:
            raise ConfigError("--strength goes with --image: leave it out, or give an image")
        if not 0 < self.strength <= 1:
            raise ConfigError(f"--strength must be above 0 and at most 1, got {self.strength}")

    def of(self, name: str) -> Drawing:
        """The same, with the settings that the built-in painter was trained for."""
        if name != PAINTER:
            return self
        steps, guidance = painter_defaults()
        return dataclasses.replace(
            self,
            steps=steps if self.steps is None else self.steps,
            guidance=guidance if self.guidance is None else self.guidance,
        )

    def arguments(self, pipe: Any) -> dict[str, Any]:
        """What ``pipe`` is called with for one picture, beside prompt and noise.

        Raises:
            ConfigError: for an option that this pipeline does not have.
        """
        side = self.size
        given: dict[str, Any] = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "negative_prompt": self.negative,
            "strength": self.strength,
        }
        if self.image is None:
            given |= {"height": side, "width": side}
        else:
            side = native_size(pipe) if side is None else side
            given["image"] = ImageOps.fit(self.image, (side, side))
        given = {name: value for name, value in given.items() if value is not None}
        known = inspect.signature(pipe.__call__).parameters
        if self.image is not None and "strength" in known:
            self._check_steps(known)
        flags = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
        flags |= {"negative_prompt": "negative", "height": "size", "width": "size"}
        for name in given:
            if name not in known:
                flag = flags.get(name, name)
                raise ConfigError(f"{type(pipe).__name__} has no --{flag}: leave it out")
        return given

    def _check_steps(self, known: Mapping[str, inspect.Parameter]) -> None:
        """Image to image takes a share of the steps, which must be one at least."""
        strength, steps = self.strength, self.steps
        strength = known["strength"].default if strength is None else strength
        steps = known["num_inference_steps"].default if steps is None else steps
        if int(steps * strength) < 1:
            raise ConfigError(
                f"{steps} --steps from an --image are {steps * strength:g} at the --strength of "
                f"{strength}, no step at all: use more of either"
            )


def native_size(pipe: Any) -> int:
    """Side in pixels of the pictures that a pipeline was trained on."""
    side = getattr(pipe, "default_sample_size", None)
    side = getattr(denoiser(pipe).config, "sample_size", None) if side is None else side
    side = side[0] if isinstance(side, list | tuple) else side
    if not isinstance(side, int):
        raise ConfigError(f"{type(pipe).__name__} does not tell its size: give --size")
    return side * pipe.vae_scale_factor


def check_seed(seed: int) -> None:
    """Raise `ConfigError` for a seed that torch does not take."""
    if not 0 <= seed < 2**62:
        raise ConfigError(f"--seed must be in 0 .. 2^62 - 1, got {seed}")


def draw_pictures(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], drawing: Drawing
) -> list[Image.Image]:
    """One picture for each of the B prompts.

    The noise of a picture follows from its seed alone: it is the same in any batch, on any device
    and with any merging.

    Raises:
        ConfigError: for an option that this pipeline does not have.
        ModelError: if the pipeline refuses what it is given, or draws values that are no numbers.
    """
    given = drawing.arguments(pipe)
    for name in ("negative_prompt", "image"):
        if name in given:
            given[name] = [given[name]] * len(prompts)
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    try:
        drawn = pipe(prompt=list(prompts), generator=noise, output_type="np", **given).images
    except TurboError:
        raise
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"{type(pipe).__name__} cannot draw this ({cause(error)}): change the options that it "
            "names"
        ) from error
    if not np.isfinite(drawn).all():
        # as pictures they would be black, and equal to one another
        raise ModelError(
            f"{type(pipe).__name__} drew values that are no numbers: check its weights, or use a "
            "wider --dtype"
        )
    return pipe.numpy_to_pil(drawn)
