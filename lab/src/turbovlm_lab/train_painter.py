"""Train the lab's painter from scratch: ``python -m turbovlm_lab.train_painter``.

First the autoencoder, then text encoder and UNet together, on captions and latents of scenes.
``weights/painter/training.json`` holds the record: how many scenes, and what share of the
attributes of the captions the lab's captioner reads in pictures drawn for validation captions.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from rich.progress import Progress
from torch import Tensor, nn
from torch.multiprocessing import get_context
from torch.nn import functional

from turbovlm_lab import captioner, options, painter
from turbovlm_lab.data import caption_tokens
from turbovlm_lab.grammar import Accuracy, attribute_accuracy, describe
from turbovlm_lab.looking import cell_of_tokens, guided_painting, words_to_attend
from turbovlm_lab.scenes import Scene, layout, scene
from turbovlm_lab.train import Link, half_cosine

HINT = 0.1  # weight of what tells the cross-attention where to look
NAMED = 3.0  # weight of an error in a cell that the caption names; most of a scene is background
_DROPPED = 0.1  # share of the captions left empty, for classifier-free guidance
_STRIDE = 100  # indices of scenes that a batch may look at: about three in five have few objects
_KEEP = 0.999  # of the running mean of the weights, which is what is saved


@dataclass(frozen=True)
class PainterTraining:
    """Settings of a run; the learning rates fall to nothing at the end of the minutes."""

    autoencoder_minutes: float = 6.0
    minutes: float = 80.0
    batch: int = 16
    rate: float = 1e-3
    warmup: int = 200
    seed: int = 0
    processes: int = 2
    check_every: int = 400
    check_scenes: int = 32
    out: Path = options.OUT / "painter"
    start: Path | None = None


def training_scenes(
    plan: PainterTraining, batch: int, rank: int = 0, ranks: int = 1
) -> list[Scene]:
    """One process's share of a batch from the training split, ten million for each seed of a run.

    A run that goes on from another one's weights sees other scenes.
    """
    start = plan.seed * 10_000_000 + (5_000_000 if plan.start else 0) + batch * _STRIDE
    seeds = painter.subjects("train", start, plan.batch)
    return [scene(seed) for seed in seeds[rank::ranks]]


def train_autoencoder(
    plan: PainterTraining, vae: Any, report: Callable[[int, float, str], None]
) -> None:
    """Train in place: absolute error of the pixels, and a little of the latent's divergence."""
    optimiser = torch.optim.AdamW(vae.parameters(), lr=plan.rate, weight_decay=0.0, fused=True)
    begun, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        done = min(1.0, (time.monotonic() - begun) / (60 * plan.autoencoder_minutes))
        pixels = painter.shrink([s.image for s in training_scenes(plan, step, 0, 2)])
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * min((step + 1) / 100, 0.01 + 0.99 * half_cosine(done))
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.encode(pixels).latent_dist
            drawn = vae.decode(latent.sample()).sample
        error = functional.l1_loss(drawn.float(), pixels)
        (error + 1e-5 * latent.kl().mean() / 1024).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        report(step, done, f"autoencoder error {error.item():.4f}" if step % 50 == 0 else "")
    with torch.no_grad():
        pixels = painter.shrink([s.image for s in training_scenes(plan, 0)])
        spread = vae.encode(pixels).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=1 / spread)


def painter_loss(pipe: Any, batch: Sequence[Scene], rng: RandomState) -> tuple[Tensor, Tensor]:
    """Of one batch at random times: the squared error of the velocity, and the missed attention."""
    scheduler = pipe.scheduler
    tokens = np.stack([caption_tokens(s.caption if rng.rand() >= _DROPPED else "") for s in batch])
    looks = words_to_attend(tokens, [s.objects for s in batch])
    with torch.no_grad():
        latent = pipe.vae.encode(painter.shrink([s.image for s in batch])).latent_dist.mean
        latent = latent * pipe.vae.config.scaling_factor
    noise = torch.from_numpy(rng.standard_normal(latent.shape)).float()
    # one time in every equal part of the range, so that no batch is all easy or all hard; late
    # times, where the layout is decided, come more often
    place = np.sqrt((np.arange(len(batch)) + rng.rand(len(batch))) / len(batch))
    times = torch.from_numpy(place * scheduler.config.num_train_timesteps).long()
    with torch.autocast("cpu", torch.bfloat16), guided_painting(pipe.unet, looks) as missed:
        text = pipe.text_encoder(torch.from_numpy(tokens)).last_hidden_state
        drawn = pipe.unet(scheduler.add_noise(latent, noise, times), times, text).sample
    wrong = (drawn.float() - scheduler.get_velocity(latent, noise, times)).square().mean(1)
    # the weight follows the caption alone, so that what is best in each pixel stays the mean
    named = ~looks[:, :, 0][
        :, cell_of_tokens(wrong.shape[-1])
    ]  # [CLS] is for the cells without a clause
    weight = torch.where(named, NAMED, 1.0)
    return (wrong * weight).sum() / weight.sum(), torch.stack(missed).mean()


def train_painter(
    plan: PainterTraining, pipe: Any, report: Callable[[int, float, str], None]
) -> Accuracy:
    """Train text encoder and UNet of ``pipe`` in place and save the running mean of the weights.

    Returns the accuracy of the last check.
    """
    names = pipe.text_encoder, pipe.unet
    link = Link(plan.processes, sum(p.numel() for part in names for p in part.parameters()))
    for rank in range(1, plan.processes):
        get_context("spawn").Process(
            target=_follow, args=(plan, copy.deepcopy(pipe), link, rank), daemon=True
        ).start()
    mean = copy.deepcopy(pipe)
    begun, score = time.monotonic(), None
    for step, done, text in _steps(plan, pipe, link, 0):
        with torch.no_grad():
            keep = min(_KEEP, step / (step + 10))
            for part in ("text_encoder", "unet"):
                pairs = zip(
                    getattr(mean, part).parameters(), getattr(pipe, part).parameters(), strict=True
                )
                for slow, fast in pairs:
                    slow.lerp_(fast, 1 - keep)
        if step % plan.check_every == 0 or done >= 1:
            score = read_back(mean, plan.check_scenes)
            record = {
                "seed": plan.seed,
                "step": step,
                "scenes": step * plan.batch,
                "minutes": round((time.monotonic() - begun) / 60, 1),
                "validation": asdict(score),
                "before": _record(plan.start),
            }
            painter.save_painter(copy.deepcopy(mean), plan.out, record)
            text += f" read: precision {score.precision:.3f} recall {score.recall:.3f}"
        elif step % 50:
            text = ""
        report(step, min(done, 1.0), text)
    assert score is not None, "a run has at least one step"
    return score


def _follow(plan: PainterTraining, pipe: Any, link: Link, rank: int) -> None:
    for _ in _steps(plan, pipe, link, rank):
        pass


def _steps(
    plan: PainterTraining, pipe: Any, link: Link, rank: int
) -> Iterator[tuple[int, float, str]]:
    """The steps of one process, on its own share of the scenes; one thread each."""
    torch.set_num_threads(1)
    pipe.unet.to(memory_format=torch.channels_last)
    parameters = [*pipe.text_encoder.parameters(), *pipe.unet.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    rng = RandomState(1000 * plan.seed + rank)
    begun, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        step += 1
        error, missed = painter_loss(pipe, training_scenes(plan, step, rank, plan.processes), rng)
        (error + HINT * missed).backward()
        gradient = nn.utils.parameters_to_vector(
            [torch.zeros_like(p) if p.grad is None else p.grad.contiguous() for p in parameters]
        )
        done = (time.monotonic() - begun) / (60 * plan.minutes)
        gradient, done = link.mean(step, rank, gradient, done)
        sizes = [p.numel() for p in parameters]
        for parameter, part in zip(parameters, gradient.split(sizes), strict=True):
            parameter.grad = part.view(parameter.shape).to(memory_format=torch.preserve_format)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * min(step / plan.warmup, 0.01 + 0.99 * half_cosine(done))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        yield step, done, f"loss {error.item():.4f} missed {missed.item():.3f}"


def _record(folder: Path | None) -> Any:
    """What is known of the run that this one goes on from."""
    if folder is None:
        return None
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))


def read_back(pipe: Any, number: int) -> Accuracy:
    """Draw validation captions and read them with the lab's captioner."""
    objects = [layout(seed) for seed in painter.subjects("validation", 0, number)]
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(
        [describe(o) for o in objects],
        num_inference_steps=painter.STEPS // 2,
        guidance_scale=painter.GUIDANCE,
        generator=torch.Generator().manual_seed(0),
    ).images
    reader = captioner.load_captioner()
    large = [np.array(image.resize((224, 224), 3)) for image in drawn]
    return attribute_accuracy(captioner.write_captions(*reader, large), objects)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m turbovlm_lab.train_painter``."""
    default = PainterTraining()
    parser = argparse.ArgumentParser(
        prog="python -m turbovlm_lab.train_painter", description=__doc__
    )
    parser.add_argument(
        "--autoencoder-minutes", type=options.positive, default=default.autoencoder_minutes
    )
    parser.add_argument("--minutes", type=options.positive, default=default.minutes)
    parser.add_argument("--seed", type=options.seed, default=default.seed, help="0 to 99")
    parser.add_argument("--out", type=Path, default=default.out, help="folder for the weights")
    parser.add_argument("--start", type=Path, help="go on from these weights, anew")
    parser.add_argument(
        "--processes", type=options.positive_count, default=default.processes, help="one core each"
    )
    plan = PainterTraining(**vars(parser.parse_args(arguments)))
    torch.manual_seed(plan.seed)
    pipe = painter.build_painter() if plan.start is None else painter.load_painter(plan.start)
    stages = (("autoencoder", train_autoencoder), ("painter", train_painter))
    with Progress() as bar:
        for name, body in stages[plan.start is not None :]:
            task = bar.add_task(name, total=1.0)

            def report(step: int, done: float, text: str, task: Any = task) -> None:
                bar.update(task, completed=done)
                if text:
                    bar.console.print(f"step {step} {text}", highlight=False)

            body(plan, pipe.vae if name == "autoencoder" else pipe, report)


if __name__ == "__main__":
    main()
