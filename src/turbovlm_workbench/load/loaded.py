"""What loading gives: a model with its own preprocessing, by what the model can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from turbovlm_workbench.load.own_size import Pixels, together
from turbovlm_workbench.load.prepare import Prepare

UNMERGED = "unmerged"
"""What results call a model as it was loaded."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode.

    Args:
        model: a `torch.nn.Module`.
        prepare: images to pixels, the model's own way.
        name: what the user called the model.
    """

    model: Any
    prepare: Prepare
    name: str

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def batch(self, pixels: Sequence[Any]) -> Pixels:
        """What `Prepare.one` gave for B images, as one batch with the model's device and type."""
        return self._placed(together(pixels))

    def pixels(self, images: Sequence[Image.Image]) -> Pixels:
        """Preprocessed ``images`` with the model's device and type."""
        return self._placed(self.prepare(images))

    def _placed(self, pixels: Pixels) -> Pixels:
        weight = next(self.model.parameters())
        return pixels.to(device=weight.device, dtype=weight.dtype)


class Classifier(LoadedModel):
    """Pixels to logits (B, classes)."""

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        number = getattr(self.model, "num_classes", None)
        return self.model.config.num_labels if number is None else number


class Embedder(LoadedModel):
    """Pixels to one vector per image, see `embedding_of`."""


@dataclass(frozen=True)
class Captioner(LoadedModel):
    """Pixels to a caption.

    Args:
        decode: token ids (B, T) to B strings.
        options: arguments of ``generate``; sampling is off, so that captions can be compared.
    """

    decode: Callable[[Tensor], list[str]]
    options: dict[str, Any] = field(default_factory=dict)

    def encode(self, model: Any, pixels: Pixels) -> object:
        """Run the vision encoder of ``model``, the loaded one or a twin, and nothing else."""
        return vision_tower(model)(pixels)

    def write(self, model: Any, pixels: Pixels) -> Tensor:
        """Token ids (B, T) that ``model``, the loaded one or a twin, writes: one ``generate``."""
        return model.generate(pixel_values=pixels, do_sample=False, **self.options)


def embedding_of(raw: Any) -> Tensor:
    """Of an embedder's output the projected embedding, else the pooled one, else cls: (B, C)."""
    if isinstance(raw, Tensor):
        return raw.float()
    for name in ("image_embeds", "pooler_output"):
        if (vector := getattr(raw, name, None)) is not None:
            return vector.float()
    return raw.last_hidden_state[:, 0].float()


def vision_tower(captioner: nn.Module) -> nn.Module:
    """The vision encoder of a captioner."""
    if not hasattr(captioner, "vision_model") and not hasattr(captioner, "encoder"):
        return cast(Any, captioner).get_encoder("image")
    name = "vision_model" if hasattr(captioner, "vision_model") else "encoder"
    return captioner.get_submodule(name)
