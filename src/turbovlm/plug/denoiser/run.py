"""One call of a pipeline, and what it says of the batches that its denoiser gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

_COPIES = ("num_images_per_prompt", "num_videos_per_prompt")


@dataclass
class PipelineRun:
    """One call of a pipeline.

    Attributes:
        pictures: how many it draws (or videos); None where its arguments do not tell.
        guidance: whether it guides now, as it last answered itself.
    """

    pictures: int | None
    guidance: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From the arguments of the call, by name."""
        prompt, embedded = given.get("prompt"), given.get("prompt_embeds")
        if isinstance(prompt, str):
            prompts = 1
        elif isinstance(prompt, list | tuple):
            prompts = len(prompt)
        elif isinstance(embedded, Tensor):
            prompts = embedded.shape[0]
        else:
            return cls(None)
        copies = next((given[name] for name in _COPIES if given.get(name) is not None), 1)
        return cls(prompts * int(copies))

    def guided(self, batch: int) -> bool:
        """Whether a batch is all pictures without the prompt, then all of them with it.

        Other guidance (perturbed attention, a third part for an image, skipped layers, a
        ControlNet in guess mode) has other batches than twice the pictures.
        """
        return self.guidance and self.pictures is not None and batch == 2 * self.pictures
