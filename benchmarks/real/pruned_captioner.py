"""Merging on top of structured pruning: the lab's captioner with half of its channels.

    python benchmarks/real/pruned_captioner.py --json pruned.json

As UPop does, half of the channels go out of the heads and out of the MLPs, and the rest is trained
on: torch-pruning chooses by the caption loss of training scenes, then the narrow captioner learns
their captions and what the whole one's vision encoder makes of them. Unseen test scenes are
captioned by the whole model, the narrow one as it was cut, and the one that was trained on, each
unmerged and merged. The KL is that of the unmerged whole model's next word to this one's, in nats a
word of the true caption. "merging costs" is over the same model unmerged, "beyond the whole's" how
much more than that costs without pruning; intervals are over 10,000 bootstrap samples of scenes.
Operations are those of the vision encoder and of one pass over the caption.

It needs the extra pruning.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from pruning import pruned_blip
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import turbovlm
from turbovlm.errors import require
from turbovlm.measure import environment, flops
from turbovlm_lab import captioner
from turbovlm_lab.data import Batch, SceneDataset, collate, pixels
from turbovlm_lab.train import half_cosine
from turbovlm_workbench.metrics.captions import score_captions
from turbovlm_workbench.metrics.intervals import interval

SHARE = 0.5
BATCH, RATE, WARMUP = 16, 1e-3, 20
CALIBRATION = 64
SIZES = (14, 20)  # r; the encoder has 8 blocks and 197 tokens


def caption_loss(model: Any, batch: Batch) -> Tensor:
    """Cross-entropy of the true captions' words."""
    labels = batch.tokens.masked_fill(batch.tokens == 0, -100)
    out = model(pixel_values=pixels(batch.images), input_ids=batch.tokens, labels=labels)
    return out.loss


def pruned(model: Any) -> Any:
    """The captioner without half of its channels, not trained on."""
    scenes = SceneDataset("train", CALIBRATION)
    batch = collate([scenes[i] for i in range(CALIBRATION)])

    def run(one: Any, _: Any) -> Tensor:
        return one(pixel_values=pixels(batch.images[:1]), input_ids=batch.tokens[:1]).logits

    return pruned_blip(model, lambda one: caption_loss(one, batch), run, SHARE)


def train_on(model: Any, teacher: Any, steps: int) -> None:
    """In place: the captions, and the vision encoder's tokens of the teacher."""
    model.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    scenes = DataLoader(
        SceneDataset("train", BATCH * steps, start=CALIBRATION), BATCH, collate_fn=collate
    )
    for step, batch in enumerate(track(scenes, "training on")):
        images = pixels(batch.images)
        with torch.no_grad():
            wanted = teacher.vision_model(images).last_hidden_state
        labels = batch.tokens.masked_fill(batch.tokens == 0, -100)
        out = model(pixel_values=images, input_ids=batch.tokens, labels=labels)
        distance = F.mse_loss(out.image_embeds, wanted) / wanted.var()
        (out.loss + distance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = RATE * min((step + 1) / WARMUP, half_cosine(step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    model.eval().requires_grad_(False)


class Scenes:
    """Test scenes, and what a captioner makes of them."""

    def __init__(self, number: int) -> None:
        drawn = SceneDataset("test", number)
        self.batch = collate([drawn[i] for i in range(number)])
        self.processor = captioner.build_caption_processor()
        self.told = self._text(self.batch.tokens)

    def _text(self, ids: Tensor) -> list[str]:
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]

    @torch.inference_mode()
    def captions(self, model: Any) -> list[str]:
        """Greedy, one a scene."""
        found: list[str] = []
        for images in self.batch.images.split(50):
            ids = model.generate(pixel_values=pixels(images), max_new_tokens=48, num_beams=1)
            found += self._text(ids)
        return found

    @torch.inference_mode()
    def words(self, model: Any) -> Tensor:
        """Log-probabilities ``(S, T, V)`` of the next word, at the words of the true caption."""
        parts = zip(self.batch.images.split(50), self.batch.tokens.split(50), strict=True)
        logits = [model(pixel_values=pixels(i), input_ids=t).logits for i, t in parts]
        return torch.cat(logits).double().log_softmax(-1)

    def kl(self, mine: Tensor, other: Tensor) -> Tensor:
        """``(S,)`` of the other's next word to mine, in nats a word."""
        each = (other.exp() * (other - mine)).sum(-1)
        told = self.batch.tokens != 0
        return (each * told).sum(1) / told.sum(1)


def measured(models: dict[str, Any], scenes: Scenes) -> Iterator[dict[str, Any]]:
    """One row a model and r."""
    first: Tensor | None = None
    costs: dict[int, Tensor] = {}
    for name, model in track(models.items(), "models", transient=True):
        own: Tensor | None = None
        for r in (0, *SIZES):
            with merging(model, r):
                words, said = scenes.words(model), scenes.captions(model)
                count = flops(model, one_scene(scenes)).gmacs
            first = words if first is None else first
            own = words if own is None else own
            right = [a == b for a, b in zip(said, scenes.told, strict=True)]
            row: dict[str, Any] = {"model": name, "r": r, "gmacs": count}
            row["parameters"] = sum(p.numel() for p in model.parameters())
            row["cider"] = score_captions(said, [[text] for text in scenes.told]).cider
            row["exact"] = interval([float(good) for good in right])
            row["kl"] = scenes.kl(words, first).mean().item()
            if r:
                assert not torch.equal(words, own), "merging changed nothing"
                cost = scenes.kl(words, own)
                row["merging costs"] = interval(cost.tolist())
                plain = costs.setdefault(r, cost)
                if plain is not cost:
                    row["beyond the whole's"] = interval((cost - plain).tolist())
            yield row


def merging(model: Any, r: int) -> AbstractContextManager[object]:
    """The model merges while this is open."""
    return turbovlm.applied(model, turbovlm.Merge(r=r)) if r else nullcontext()


def one_scene(scenes: Scenes) -> dict[str, Tensor]:
    """Inputs of a forward over one image and its caption."""
    return {
        "pixel_values": pixels(scenes.batch.images[:1]),
        "input_ids": scenes.batch.tokens[:1],
    }


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(
        "model", "r", "parameters, M", "GFLOPs", "CIDEr", "captions exact, %", "KL",
        "merging costs [95 %]", "beyond the whole's", box=None, pad_edge=False,
    )  # fmt: skip
    for row in rows:
        spread = ["{:+.4f} [{:+.4f}, {:+.4f}]".format(*row[key]) if key in row else ""
                  for key in ("merging costs", "beyond the whole's")]  # fmt: skip
        shown.add_row(
            row["model"],
            str(row["r"] or ""),
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['gmacs']:.3f}",
            f"{row['cider']:.2f}",
            "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in row["exact"])),
            f"{row['kl']:.4f}",
            *spread,
        )
    return shown


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--steps", type=int, default=400, help="of training on, 16 scenes each; 0: none")
    p.add_argument("--scenes", type=int, default=300)
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    require("torch_pruning", "pruning")
    torch.manual_seed(0)
    whole, _ = captioner.load_captioner()
    models: dict[str, Any] = {"whole": whole, "pruned": pruned(whole)}
    if args.steps:
        models["pruned, trained on"] = copy.deepcopy(models["pruned"])
        train_on(models["pruned, trained on"], whole, args.steps)
    rows = list(measured(models, Scenes(args.scenes)))
    Console(width=160).print(table(rows))
    if args.json:
        told = {"steps": args.steps, "scenes": args.scenes, "share": SHARE}
        report = {**told, "environment": environment("cpu"), "rows": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
