"""The built-in painter on captions it has never seen, judged by the built-in captioner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from turbovlm_lab import painter
from turbovlm_lab.captioner import SIDE
from turbovlm_lab.grammar import attribute_accuracy, parse
from turbovlm_lab.scenes import scene
from turbovlm_workbench.generation.compare import (
    Comparison,
    PicturePlan,
    Progress,
    compare_pictures,
    restore_settings,
)
from turbovlm_workbench.generation.draw import Drawing
from turbovlm_workbench.generation.pipeline import PAINTER, load_pipeline
from turbovlm_workbench.load.lab import lab_captioner
from turbovlm_workbench.tasks.captioning import Captioning

PROMPTS = 6
RATIOS = (0.3, 0.5)
METHODS = ("turbo",)
LEVEL = 1024
"""Tokens of the painter's first level. The narrow blocks of the others take longer to match than
what they are spared."""


@dataclass(frozen=True)
class PainterDemo:
    """What was drawn, and what the captioner makes of it.

    Attributes:
        comparison: pictures, times, operations.
        said: its caption of every picture, by the name of the side.
        right: share of the prompts' attributes that are in its captions, likewise.
    """

    comparison: Comparison
    said: dict[str, list[str]]
    right: dict[str, float]


def painter_demo(progress: Progress = lambda stage, done, total: None) -> PainterDemo:
    """Draw, and read the pictures with the captioner.

    Raises:
        ModelError: if the package came without its weights.
        MissingExtra: if diffusers or transformers is not installed.
    """
    pipe = load_pipeline(PAINTER)
    prompts = [scene(seed).caption for seed in painter.subjects("test", 0, PROMPTS)]
    plan = PicturePlan(prompts, Drawing().of(PAINTER))
    merges = restore_settings(RATIOS, METHODS, LEVEL)
    drawn = compare_pictures(pipe, "the built-in painter", plan, merges, progress)
    progress("reading the pictures", 0, 1)
    said = {side.name: captions(side.pictures) for side in drawn.sides}
    truths = [parse(prompt) for prompt in prompts]
    right = {name: attribute_accuracy(texts, truths).recall for name, texts in said.items()}
    return PainterDemo(drawn, said, right)


def captions(pictures: Sequence[Image.Image]) -> list[str]:
    """What the built-in captioner reads in pictures of any size."""
    task = Captioning(lab_captioner("captioner", None))
    large = [picture.convert("RGB").resize((SIDE, SIDE)) for picture in pictures]
    return task.outputs(task.model, task.pixels(large))
