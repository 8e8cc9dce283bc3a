"""Train a head on the frozen vision encoder: ``python -m turbovlm_lab.train_heads vqa``.

What the vision encoder makes of some thousand scenes is computed once and held in memory; each
step then asks new questions about them. ``weights/HEAD/training.json`` holds the record.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import RandomState
from rich.progress import Progress
from torch import Tensor, nn

from turbovlm_lab import heads, options
from turbovlm_lab.data import pixels
from turbovlm_lab.lessons import LESSONS, EncodedScenes, encoded_scenes
from turbovlm_lab.scenes import scene, seed_of_split

_BATCH = 32


@dataclass(frozen=True)
class HeadTraining:
    """Settings of a run; ``minutes`` do not count the time to encode ``scenes``."""

    head: str
    minutes: float = 20.0
    scenes: int = 8000
    check_scenes: int = 400
    check_every: int = 500
    rate: float = 1e-3
    warmup: int = 200
    seed: int = 0
    out: Path = options.OUT


def encode_scenes(
    see: Callable[[Tensor], Tensor],
    name: str,
    start: int,
    number: int,
    report: Callable[[float], None],
) -> EncodedScenes:
    """What ``see`` of a lesson makes of consecutive scenes of a split.

    Args:
        see: pixels (B, 3, S, S) -> (B, N, C).
        name: of the split.
        start: the first scene.
        number: how many scenes.
        report: called with the share done (0 to 1).
    """
    states, objects = [], []
    for first in range(0, number, _BATCH):
        drawn = [
            scene(seed_of_split(name, start + i)) for i in range(first, min(first + _BATCH, number))
        ]
        images = pixels(torch.from_numpy(np.stack([item.image for item in drawn])))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            states.append(see(images).half())
        objects += [item.objects for item in drawn]
        report(len(objects) / number)
    return encoded_scenes(torch.cat(states), objects)


def train_head(
    plan: HeadTraining,
    report: Callable[[int, float, str], None] = lambda *_: None,
    filled: Callable[[float], None] = lambda _: None,
) -> dict[str, float]:
    """Train a head and write it to ``plan.out``, which holds the captioner's weights.

    ``report`` is called after every step with its number, the share done (0 to 1) and a line of
    text that is empty on most steps, ``filled`` with the share of the scenes that were seen.
    Returns the scores on validation scenes.

    Raises:
        ModelError: if ``plan.out`` holds no captioner or, for a head that starts from the one
            that answers questions, not that one.
    """
    torch.manual_seed(plan.seed)
    model, processor = heads.build_head(plan.head), heads.build_head_processor()
    model.load_state_dict(heads.shared_weights(plan.out), strict=False)
    lesson = LESSONS[plan.head](model, processor.tokenizer)
    if plan.head != "vqa":
        lesson.begin(heads.own_weights("vqa", plan.out))
    scenes = encode_scenes(lesson.see, "train", plan.seed * 10_000_000, plan.scenes, filled)
    check = encode_scenes(lesson.see, "validation", 0, plan.check_scenes, lambda _: None)
    parameters = lesson.parameters()
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), fused=True)
    rng = RandomState(plan.seed)
    start = time.monotonic()
    done, step, scores = 0.0, 0, {}
    while done < 1:
        step += 1
        with torch.autocast("cpu", torch.bfloat16):
            loss = lesson.loss(scenes, rng)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        done = min((time.monotonic() - start) / (60 * plan.minutes), 1.0)
        rate = plan.rate * min(
            step / plan.warmup, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        text = f"loss {loss.item():.4f}" if step % 50 == 0 else ""
        if step % plan.check_every == 0 or done == 1:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                scores = lesson.scores(check)
            text = " ".join(
                [f"loss {loss.item():.4f}", *(f"{k} {v:.4f}" for k, v in scores.items())]
            )
            record = {
                "seed": plan.seed,
                "minutes": round((time.monotonic() - start) / 60, 1),
                "steps": step,
                "scenes": plan.scenes,
                "texts": step * lesson.texts,
                "validation scenes": plan.check_scenes,
                "validation": {name: round(value, 4) for name, value in scores.items()},
            }
            heads.save_head(model, plan.head, record, lesson.trained, plan.out)
        report(step, done, text)
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m turbovlm_lab.train_heads``."""
    parser = argparse.ArgumentParser(prog="python -m turbovlm_lab.train_heads", description=__doc__)
    parser.add_argument("head", choices=heads.HEADS)
    parser.add_argument(
        "--minutes", type=options.positive, default=HeadTraining.minutes, help="of training"
    )
    parser.add_argument(
        "--scenes",
        type=options.positive_count,
        default=HeadTraining.scenes,
        help="65 kB of memory each",
    )
    parser.add_argument(
        "--rate", type=options.positive, default=HeadTraining.rate, help="highest learning rate"
    )
    parser.add_argument("--seed", type=options.seed, default=HeadTraining.seed, help="0 to 99")
    parser.add_argument("--out", type=Path, default=HeadTraining.out, help="folder for the weights")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a step is made of small operations
    with Progress() as bar:
        filling = bar.add_task("scenes", total=1.0)
        training = bar.add_task("training", total=1.0)

        def report(step: int, done: float, text: str) -> None:
            bar.update(training, completed=done)
            if text:
                bar.console.print(f"step {step} {text}", highlight=False)

        train_head(
            HeadTraining(**vars(given)), report, lambda done: bar.update(filling, completed=done)
        )


if __name__ == "__main__":
    main()
