"""Train the lab's captioner from scratch: ``python -m turbovlm_lab.train``.

The weights in the package come from ``--seed 0 --steps 8000 --minutes 57`` on two CPU cores with
bfloat16 instructions, shared with other work: 4820 steps of 32 scenes, 154,240 in all. The
minutes ended that run, so another machine gets other weights from it; the defaults below give
the same number of steps everywhere. A processor without bfloat16 instructions takes longer.
``weights/training.json`` holds the record, ``python -m turbovlm_lab.evaluate`` the accuracy.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.multiprocessing import get_context
from torch.nn import functional

from turbovlm_lab import captioner, options
from turbovlm_lab.data import PATCHES, TARGETS, Batch, SceneDataset, collate, pixels
from turbovlm_lab.evaluate import evaluate_captioner
from turbovlm_lab.grammar import Accuracy


class PatchReader(nn.Module):
    """Linear heads that name what each patch shows; they help training and are then dropped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.Linear(width, sum(TARGETS.values()))

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Sum of the heads' mean losses; embeddings (B, 196, width), targets (B, 196, 5)."""
        scores = self.heads(embeddings).float().flatten(0, 1).split(tuple(TARGETS.values()), dim=1)
        flat = targets.flatten(0, 1)
        shown = flat[:, 0] > 0
        losses = [functional.cross_entropy(scores[0], flat[:, 0])]
        for head, score in enumerate(scores[1:], start=1):
            losses.append(functional.cross_entropy(score[shown], flat[shown, head]))
        return torch.stack(losses).sum()


def losses(model: Any, reader: PatchReader, batch: Batch) -> tuple[Tensor, Tensor]:
    """The caption loss and the patch loss of one batch."""
    labels = batch.tokens.masked_fill(batch.tokens == 0, -100)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(pixel_values=pixels(batch.images), input_ids=batch.tokens, labels=labels)
        return out.loss, reader(out.image_embeds[:, -PATCHES:], batch.patches)


@dataclass(frozen=True)
class CaptionerTraining:
    """Settings of a run. It ends at ``steps`` or after ``minutes``, whichever comes first, and
    the learning rate falls along a half cosine to whichever end is nearer."""

    steps: int = 4820
    minutes: float = 240.0
    batch: int = 32
    rate: float = 1e-3
    warmup: int = 250
    seed: int = 0
    processes: int = 2
    check_every: int = 1000
    check_scenes: int = 200
    out: Path = options.OUT


class Link:
    """What the processes of a run share: gradients, the share done, and one barrier a step.

    Everything shared is kept twice and used on alternate steps, so that no process can overwrite
    what another one has yet to read.
    """

    def __init__(self, processes: int, parameters: int) -> None:
        self.gradients = torch.zeros(2, processes, parameters).share_memory_()
        self.done = torch.zeros(2, dtype=torch.float64).share_memory_()
        self.barrier = get_context("spawn").Barrier(processes)

    def mean(self, step: int, rank: int, gradient: Tensor, done: float) -> tuple[Tensor, float]:
        """The mean gradient over the processes and the share done that rank 0 reports."""
        turn = step % 2
        self.gradients[turn, rank] = gradient
        if rank == 0:
            self.done[turn] = done
        self.barrier.wait(timeout=600)
        return self.gradients[turn].mean(dim=0), float(self.done[turn])


def train_captioner(
    plan: CaptionerTraining, model: Any, report: Callable[[int, float, str], None] = lambda *_: None
) -> Accuracy:
    """Train ``model`` in place, keeping in ``plan.out`` the weights that score best.

    ``report`` is called after every step with its number, the share done (0 to 1) and a line of
    text that is empty on most steps. Returns the best accuracy on the validation scenes.
    """
    processor = captioner.build_caption_processor()
    reader = PatchReader(model.config.vision_config.hidden_size)
    size = sum(p.numel() for p in (*model.parameters(), *reader.parameters()))
    link = Link(plan.processes, size)
    for rank in range(1, plan.processes):
        # Copies, since sending a model to another process moves its tensors to shared memory.
        copies = copy.deepcopy(model), copy.deepcopy(reader)
        helper = get_context("spawn").Process(
            target=_follow, args=(plan, *copies, link, rank), daemon=True
        )
        helper.start()
    best: Accuracy | None = None
    start = time.monotonic()
    for step, done, text in _steps(plan, model, reader, link, 0):
        minutes = (time.monotonic() - start) / 60
        if step % plan.check_every == 0 or done >= 1:
            score = evaluate_captioner(model, processor, "validation", plan.check_scenes)
            if best is None or score.precision + score.recall >= best.precision + best.recall:
                best = score
                record = {
                    "seed": plan.seed,
                    "step": step,
                    "scenes": step * plan.batch,
                    "minutes": round(minutes, 1),
                    "validation": asdict(score),
                }
                save_captioner(model, processor, plan.out, record)
            text += f" precision {score.precision:.4f} recall {score.recall:.4f}"
            text += f" exact {score.exact:.3f} count {score.count:.3f}"
        elif step % 50:
            text = ""
        if text:
            text += f" {step * plan.batch / minutes / 60:.0f} scenes/s"
        report(step, min(done, 1.0), text)
    assert best is not None, "a run has at least one step"
    return best


def _follow(
    plan: CaptionerTraining, model: Any, reader: PatchReader, link: Link, rank: int
) -> None:
    """Body of the other processes: the same steps, on their own scenes."""
    for _ in _steps(plan, copy.deepcopy(model), copy.deepcopy(reader), link, rank):
        pass


def _steps(
    plan: CaptionerTraining, model: Any, reader: PatchReader, link: Link, rank: int
) -> Iterator[tuple[int, float, str]]:
    """Take the steps of one process; yields their number, the share done and the losses.

    Each process computes on one thread and they meet once a step: threads would meet at every
    operation, and on a machine with other work that costs nine tenths of the speed.
    """
    torch.set_num_threads(1)
    parameters = [*model.parameters(), *reader.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), fused=True)
    # Ten million scenes for each seed of a run, so that runs do not share any.
    scenes = SceneDataset("train", plan.steps * plan.batch, start=plan.seed * 10_000_000)
    start = time.monotonic()
    done, step = 0.0, 0
    model.train()
    while done < 1:
        step += 1
        first = (step - 1) * plan.batch
        batch = collate([scenes[first + i] for i in range(rank, plan.batch, plan.processes)])
        caption_loss, patch_loss = losses(model, reader, batch)
        (caption_loss + patch_loss).backward()
        gradient = nn.utils.parameters_to_vector([_gradient(p) for p in parameters])
        done = max(step / plan.steps, (time.monotonic() - start) / (60 * plan.minutes))
        gradient, done = link.mean(step, rank, gradient, done)
        for parameter, part in zip(
            parameters, gradient.split([p.numel() for p in parameters]), strict=True
        ):
            parameter.grad = part.view_as(parameter)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = plan.rate * min(step / plan.warmup, 0.01 + 0.99 * half_cosine(done))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        yield step, done, f"caption loss {caption_loss.item():.4f} patch {patch_loss.item():.4f}"


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def save_captioner(model: Any, processor: Any, folder: Path, record: dict[str, Any]) -> None:
    """Write weights (float32 safetensors), configuration, tokenizer, processor and record."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    # transformers leaves the weights readable by their owner alone, which breaks installed copies.
    (folder / "model.safetensors").chmod(0o644)


def half_cosine(done: float) -> float:
    """From 1 to 0 while ``done`` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m turbovlm_lab.train``."""
    default = CaptionerTraining()
    parser = argparse.ArgumentParser(prog="python -m turbovlm_lab.train", description=__doc__)
    parser.add_argument(
        "--steps", type=options.positive_count, default=default.steps, help="of 32 scenes each"
    )
    parser.add_argument(
        "--minutes", type=options.positive, default=default.minutes, help="stop after these"
    )
    parser.add_argument("--seed", type=options.seed, default=default.seed, help="0 to 99")
    parser.add_argument("--out", type=Path, default=default.out, help="folder for the weights")
    parser.add_argument(
        "--processes", type=options.positive_count, default=default.processes, help="one core each"
    )
    given = parser.parse_args(arguments)
    torch.manual_seed(given.seed)
    plan = CaptionerTraining(**vars(given))
    with Progress() as bar:
        task = bar.add_task("training", total=1.0)

        def report(step: int, done: float, text: str) -> None:
            bar.update(task, completed=done)
            if text:
                bar.console.print(f"step {step} {text}", highlight=False)

        best = train_captioner(plan, captioner.build_captioner(), report)
    print(f"best validation precision {best.precision:.4f}, recall {best.recall:.4f}")


if __name__ == "__main__":
    main()
