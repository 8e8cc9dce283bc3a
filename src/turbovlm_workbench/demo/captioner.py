"""The built-in captioner on scenes it has never seen: a task that needs no download."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image

from turbovlm_lab.grammar import Describable, attribute_accuracy
from turbovlm_lab.scenes import Scene, scene, seed_of_split
from turbovlm_workbench.load.lab import lab_captioner
from turbovlm_workbench.tasks.captioning import Captioning

SCENES = 64
RS = (8, 14, 20)
METHODS = ("turbo", "redundancy", "semantics", "random")


@dataclass(frozen=True)
class UnseenScenes:
    """Generated images, in memory; see `turbovlm_workbench.data.images.Images`."""

    scenes: tuple[Scene, ...]

    @classmethod
    def unseen(cls, number: int) -> UnseenScenes:
        """The first ``number`` scenes of the test split."""
        return cls(tuple(scene(seed_of_split("test", index)) for index in range(number)))

    def __len__(self) -> int:
        return len(self.scenes)

    def name(self, index: int) -> str:
        """E.g. ``"scene 3"``."""
        return f"scene {index + 1}"

    def image(self, index: int) -> Image.Image:
        """Image ``index`` in mode RGB."""
        return Image.fromarray(self.scenes[index].image)


def captioning(scenes: UnseenScenes) -> Captioning:
    """The built-in captioner, greedy, with the true objects of ``scenes``.

    Raises:
        ModelError: if the package came without its weights.
        MissingExtra: if transformers is not installed.
    """
    model = dataclasses.replace(lab_captioner("captioner", None), name="the built-in captioner")
    truth = [partial(precision, item.objects) for item in scenes.scenes]
    return Captioning(model, truth=truth)


def precision(objects: Sequence[Describable], caption: str) -> float:
    """Share of the attributes in ``caption`` that ``objects`` really have."""
    return attribute_accuracy([caption], [objects]).precision
