"""The built-in vision-language model on scenes it has never seen, with fewer visual tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import turbovlm
from turbovlm.measure import Ratio, Rounds, Timing, Variant, compare, environment
from turbovlm_lab.lettering import WORD_QUESTION, worded_scene
from turbovlm_lab.scenes import Scene, seed_of_split
from turbovlm_lab.telling import Told, exam
from turbovlm_workbench.compare.plan import Progress
from turbovlm_workbench.load.answering import AnsweringModel
from turbovlm_workbench.load.by_task import LAB_VLM, load_answering

SCENES, SHOWN, ROUNDS = 40, 6, 10
TIMED = 8
"""Pictures in a timed call: of one alone Python would be the larger part of the time."""
KEEPS = (1 / 4, 1 / 9)
BATCH = 32


@dataclass(frozen=True)
class VlmSide:
    """The model with one share of the visual tokens.

    Attributes:
        name: e.g. ``"49 of 196"``.
        tokens: visual tokens that the language model gets of a picture.
        seconds: to the first tokens of `TIMED` pictures, vision encoder included; median.
        speedup: over all tokens.
        right: share of right answers, by topic; of all under ``"answers"``.
        answers: for each scene, one for each of its questions.
        kept: for each scene shown, which of its tokens stay; empty where all do.
    """

    name: str
    tokens: int
    seconds: float
    speedup: Ratio
    right: dict[str, float]
    answers: list[list[str]]
    kept: list[list[int]]


@dataclass(frozen=True)
class VlmDemo:
    """What was asked and answered, with all tokens and with fewer."""

    scenes: tuple[Scene, ...]
    asked: list[list[Told]]
    sides: list[VlmSide]
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, pictures left out."""
        questions = [[(told.prompt, told.answer) for told in some] for some in self.asked]
        sides = [asdict(side) for side in self.sides]
        return {"questions": questions, "sides": sides, "environment": self.environment}


def vlm_demo(progress: Progress = lambda stage, done, total: None) -> VlmDemo:
    """Ask about unseen scenes, and time the first token.

    Raises:
        ModelError: if the package came without its weights.
        MissingExtra: if transformers is not installed.
    """
    loaded = load_answering(LAB_VLM)
    scenes = [worded_scene(seed_of_split("test", index)) for index in range(SCENES)]
    # without captions, which the other demonstration shows
    asked = [exam(s.objects, s.word, index)[1:] for index, s in enumerate(scenes)]
    pixels = loaded.pixels([Image.fromarray(scene.image) for scene in scenes])
    settings = [None, *(turbovlm.VisualTokens(keep=keep) for keep in KEEPS)]
    with torch.inference_mode():
        timed = _time(loaded, pixels[:TIMED], settings, progress)
        sides = []
        for done, (config, timing) in enumerate(zip(settings, timed, strict=True)):
            progress("asking", done, len(settings))
            with _setting(loaded, config):
                answers = _answers(loaded, pixels, asked)
                kept = [] if config is None else _kept(loaded, pixels[:SHOWN])
            total = loaded.model.config.image_seq_length
            tokens = total if config is None else config.count(total)
            speedup = timing.speedup_over(timed[0])
            right = _right(asked, answers)
            name = f"{tokens} of {total}"
            sides.append(VlmSide(name, tokens, timing.median_s, speedup, right, answers, kept))
    return VlmDemo(tuple(scenes[:SHOWN]), asked[:SHOWN], sides, environment("cpu"))


def first_question(loaded: AnsweringModel, pixels: Tensor) -> None:
    """One forward: vision encoder, and a whole prompt to its first token."""
    image = loaded.tokenizer.image_token * loaded.model.config.image_seq_length
    inputs = loaded.tokens([image + WORD_QUESTION] * len(pixels))
    loaded.model(pixel_values=pixels, **inputs, logits_to_keep=1)


@contextmanager
def _setting(loaded: AnsweringModel, config: turbovlm.VisualTokens | None) -> Iterator[None]:
    with nullcontext() if config is None else turbovlm.applied(loaded.model, config, record=False):
        yield


def _time(
    loaded: AnsweringModel,
    pixels: Tensor,
    settings: Sequence[turbovlm.VisualTokens | None],
    progress: Progress,
) -> list[Timing]:
    call = partial(first_question, loaded, pixels)
    timed = compare(
        {
            str(index): Variant(call, partial(_setting, loaded, config))
            for index, config in enumerate(settings)
        },
        rounds=Rounds(ROUNDS),
        progress=lambda done, total, _: progress("timing", done, total),
    )
    return list(timed.values())


def _answers(
    loaded: AnsweringModel, pixels: Tensor, asked: Sequence[Sequence[Told]]
) -> list[list[str]]:
    flat = [(scene, told.prompt) for scene, some in enumerate(asked) for told in some]
    said: list[str] = []
    for first in range(0, len(flat), BATCH):
        rows, questions = zip(*flat[first : first + BATCH], strict=True)
        said += loaded.answer(pixels[list(rows)], questions)
    given = iter(said)
    return [[next(given) for _ in some] for some in asked]


def _kept(loaded: AnsweringModel, pixels: Tensor) -> list[list[int]]:
    with turbovlm.recording(loaded.model) as run:
        first_question(loaded, pixels)
        return [image.kept.tolist() for image in run.visual.images]


def _right(asked: Sequence[Sequence[Told]], said: Sequence[Sequence[str]]) -> dict[str, float]:
    right: dict[str, list[bool]] = {"answers": []}
    for some, answers in zip(asked, said, strict=True):
        for told, answer in zip(some, answers, strict=True):
            for topic in ("answers", told.topic):
                right.setdefault(topic, []).append(answer == told.answer)
    return {topic: sum(same) / len(same) for topic, same in right.items()}
