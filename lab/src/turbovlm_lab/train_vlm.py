"""Train the lab's vision-language model: ``python -m turbovlm_lab.train_vlm``.

First the vision encoder, from the captioner's, learns to name what every patch shows, letters among
it (`turbovlm_lab.seeing`). Then it is frozen: what it makes of some thousand scenes is held in
memory, and every step asks new questions about them (`turbovlm_lab.reading`).
``weights/vlm/training.json`` holds the record.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from rich.progress import Progress
from torch import Tensor, nn

from turbovlm_lab import heads, options, reading, seeing, telling, vlm
from turbovlm_lab.lettering import worded_scene
from turbovlm_lab.scenes import Object, Word, seed_of_split

_BATCH, _WARMUP = 16, 100
_IMAGES, _QUESTIONS = 8, 20  # a step of the language model: most of its time goes to images
Report = Callable[[str, int, float, str], None]
"""Called with the part, the step, the share of the part done (0 to 1) and a line, mostly empty."""


@dataclass(frozen=True)
class VlmTraining:
    """Settings of a run; neither of the minutes counts the time to encode ``scenes``.

    With ``start``, a folder that holds such a model, its language model is trained on, and the
    encoder is left as it is.
    """

    encoder_minutes: float = 30.0
    minutes: float = 80.0
    scenes: int = 8000
    check_scenes: int = 300
    check_every: int = 200
    encoder_rate: float = 5e-4
    rate: float = 1e-3
    seed: int = 0
    out: Path = options.OUT
    start: Path | None = None


class SeenScenes(NamedTuple):
    """What the vision encoder makes of N scenes, float16 (N, 196, 160), and what they show."""

    states: Tensor
    content: Sequence[tuple[tuple[Object, ...], Word | None]]


def train_vlm(plan: VlmTraining, report: Report = lambda *_: None) -> dict[str, float]:
    """Train the model and write it to ``plan.out``, which holds the captioner's weights.

    Returns the shares of right answers on validation scenes, by kind.

    Raises:
        ModelError: if ``plan.out`` holds no captioner.
    """
    torch.manual_seed(plan.seed)
    if plan.start is None:
        model: Any = vlm.build_vlm()
        tower = model.model.vision_tower
        tower.load_state_dict(vlm.vision_weights(heads.shared_weights(plan.out)), strict=False)
        before = {"encoder": _train_encoder(plan, tower, report)}
    else:
        model = vlm.load_vlm(plan.start)[0].train()
        tower = model.model.vision_tower
        before = {"after": vlm.training_record(plan.start)}
    model.requires_grad_(True)
    tower.requires_grad_(False)
    scenes = see_scenes(
        tower, "train", plan.seed * 10_000_000, plan.scenes, lambda x: report("scenes", 0, x, "")
    )
    check = see_scenes(tower, "validation", 0, plan.check_scenes)
    return _train_reader(plan, model, scenes, check, before, report)


def see_scenes(
    tower: Any, name: str, start: int, number: int, done: Callable[[float], None] = lambda _: None
) -> SeenScenes:
    """What LLaVA reads of the vision encoder, for consecutive worded scenes of a split."""
    states, content = [], []
    for first in range(0, number, _BATCH):
        drawn = [
            worded_scene(seed_of_split(name, start + index))
            for index in range(first, min(first + _BATCH, number))
        ]
        images = torch.from_numpy(np.stack([item.image for item in drawn]))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            states.append(seeing.visual_states(tower, images).half())
        content += [(item.objects, item.word) for item in drawn]
        done(len(content) / number)
    return SeenScenes(torch.cat(states), content)


def most_common_answers(
    content: Sequence[tuple[tuple[Object, ...], Word | None]],
) -> dict[str, str]:
    """What is answered most often to each kind of question, without looking."""
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for place, (objects, word) in enumerate(content):
        for told in telling.exam(objects, word, place):
            said[told.topic][told.answer] += 1
    return {topic: answers.most_common(1)[0][0] for topic, answers in said.items()}


def blind_scores(answers: dict[str, str], check: SeenScenes) -> dict[str, float]:
    """Shares right of `most_common_answers`, by kind."""
    right: dict[str, list[bool]] = defaultdict(list)
    for place, (objects, word) in enumerate(check.content):
        for told in telling.exam(objects, word, place):
            right[told.topic].append(told.answer == answers[told.topic])
    return {topic: float(np.mean(same)) for topic, same in sorted(right.items())}


def vlm_scores(model: Any, check: SeenScenes) -> dict[str, float]:
    """Shares right of the model's greedy answers, by kind; a caption is right to the letter."""
    right: dict[str, list[bool]] = defaultdict(list)
    for first in range(0, len(check.content), _BATCH):
        some = range(first, min(first + _BATCH, len(check.content)))
        told = [_exam(check, place) for place in some]
        image = model.model.multi_modal_projector(check.states[some.start : some.stop].float())
        given = reading.text_rows(told)
        same = reading.right_texts(reading.predicted(model, image, given), given)
        for texts, row in zip(told, same, strict=True):
            for text, good in zip(texts, row, strict=True):
                right[text.topic].append(good)
    return {topic: float(np.mean(same)) for topic, same in sorted(right.items())}


def _exam(scenes: SeenScenes, place: int) -> list[telling.Told]:
    objects, word = scenes.content[place]
    return telling.exam(objects, word, place)


def _train_encoder(plan: VlmTraining, tower: Any, report: Report) -> dict[str, Any]:
    reader = seeing.PatchNamer(tower.config.hidden_size)
    parameters = [*seeing.trained_parameters(tower), *reader.parameters()]
    # scenes of their own, behind those that the language model learns from
    start = plan.seed * 10_000_000 + 5_000_000
    check = seeing.crowded_patches("validation", 0, 6 * _BATCH)
    taken, scores = 0, {}
    for taken, done in _steps(parameters, plan.encoder_rate, plan.encoder_minutes):
        given = seeing.crowded_patches("train", start + taken * _BATCH, _BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            loss = seeing.patch_loss(reader(seeing.last_states(tower, given.images)), given.shown)
        loss.backward()
        text = ""
        if taken % plan.check_every == 0 or done == 1:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                scores = seeing.patch_scores(
                    reader(seeing.last_states(tower, check.images)), check.shown
                )
            text = _line(loss, scores)
        report("encoder", taken, done, text)
    return {
        "minutes": plan.encoder_minutes,
        "steps": taken,
        "scenes": taken * _BATCH,
        "validation": _rounded(scores),
    }


def _train_reader(
    plan: VlmTraining,
    model: Any,
    scenes: SeenScenes,
    check: SeenScenes,
    before: dict[str, Any],
    report: Report,
) -> dict[str, float]:
    if plan.start is None:
        reading.standardise(model.model.multi_modal_projector, scenes.states[:200])
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only one that tells where it looked
    blind = blind_scores(most_common_answers(scenes.content[:1000]), check)
    rng = RandomState(plan.seed)
    scores: dict[str, float] = {}
    parameters = [p for p in model.parameters() if p.requires_grad]
    for step, done in _steps(parameters, plan.rate, plan.minutes):
        chosen = rng.permutation(len(scenes.content))[:_IMAGES]
        content = [scenes.content[place] for place in chosen]
        told = [telling.lesson(objects, word, rng, _QUESTIONS) for objects, word in content]
        with torch.autocast("cpu", torch.bfloat16):
            given = reading.text_rows(told)
            loss = reading.reading_loss(model, scenes.states[chosen].float(), given)
        loss.backward()
        text = ""
        if step % plan.check_every == 0 or done == 1:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                scores = vlm_scores(model, check)
            text = _line(loss, scores)
            record = {
                "seed": plan.seed,
                **before,
                "minutes": round(done * plan.minutes, 1),
                "steps": step,
                "scenes": plan.scenes,
                "texts": step * _IMAGES * (2 + _QUESTIONS),
                "validation scenes": plan.check_scenes,
                "validation": _rounded(scores),
                "most common answer": _rounded(blind),
            }
            vlm.save_vlm(model, record, plan.out)
        report("reader", step, done, text)
    model.set_attn_implementation(implementation)
    return scores


def _steps(
    parameters: Sequence[nn.Parameter], rate: float, minutes: float
) -> Iterator[tuple[int, float]]:
    """Steps from 1 on with the share of the minutes that is over; each ends with an update.

    The rate warms up and falls by half a cosine; the step that is told 1 is the last.
    """
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
    start, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        step += 1
        done = min((time.monotonic() - start) / (60 * minutes), 1.0)
        now = rate * min(step / _WARMUP, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimiser.param_groups:
            group["lr"] = now
        yield step, done
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def _line(loss: Tensor, scores: dict[str, float]) -> str:
    return " ".join([f"loss {loss.item():.4f}", *(f"{k} {v:.3f}" for k, v in scores.items())])


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in scores.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m turbovlm_lab.train_vlm``."""
    default = VlmTraining()
    parser = argparse.ArgumentParser(prog="python -m turbovlm_lab.train_vlm", description=__doc__)
    parser.add_argument(
        "--encoder-minutes", type=options.positive, default=default.encoder_minutes, help="first"
    )
    parser.add_argument("--minutes", type=options.positive, default=default.minutes, help="then")
    parser.add_argument(
        "--scenes",
        type=options.positive_count,
        default=default.scenes,
        help="63 kB of memory each",
    )
    parser.add_argument("--seed", type=options.seed, default=default.seed, help="0 to 99")
    parser.add_argument(
        "--start", type=Path, metavar="DIR", help="train the language model of these weights on"
    )
    parser.add_argument("--out", type=Path, default=default.out, help="folder for the weights")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a step is made of small operations
    with Progress() as bar:
        parts = {name: bar.add_task(name, total=1.0) for name in ("encoder", "scenes", "reader")}

        def report(part: str, step: int, done: float, text: str) -> None:
            bar.update(parts[part], completed=done)
            if text:
                bar.console.print(f"{part} {step} {text}", highlight=False)

        train_vlm(VlmTraining(**vars(given)), report)


if __name__ == "__main__":
    main()
