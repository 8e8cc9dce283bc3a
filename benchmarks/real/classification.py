"""What merging costs a real classifier on real photographs, with paired intervals.

    python benchmarks/real/classification.py --data DATA --json classification.json

ViT-Ti/16 AugReg, at 224 px and with its position embeddings resampled at 384 px, on 500 labelled
photographs or on the 1000 of Flickr8k's development split, which have no labels and show several
things each (DATA holds vit_tiny_augreg, photos500 and flickr8k). Every method sees the same images,
so that methods are compared image by image: the interval of a difference is that of its mean over
10,000 bootstrap samples of images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

import turbovlm
from turbovlm import hosts
from turbovlm.measure.speed import Rounds, Variant, compare
from turbovlm_workbench.data.images import ImageFolder
from turbovlm_workbench.load.prepare import timm_prepare
from turbovlm_workbench.metrics.intervals import interval

NAME = "vit_tiny_patch16_224"
R = {224: (4, 8, 13, 16), 384: (20, 30, 40)}
METHODS = ("turbo", "redundancy", "semantics", "random")


@dataclass(frozen=True)
class Result:
    """Per image, in order: whether top-1 is the label, and is the unmerged model's; the KL."""

    right: Tensor | None
    same: Tensor
    kl: Tensor

    @classmethod
    def of(cls, logits: Tensor, reference: Tensor, labels: Tensor | None) -> Result:
        p, q = reference.log_softmax(-1), logits.log_softmax(-1)
        top = logits.argmax(-1)
        return cls(
            None if labels is None else (top == labels).double(),
            (top == reference.argmax(-1)).double(),
            (p.exp() * (p - q)).sum(-1),
        )

    def summary(self) -> dict[str, float | None]:
        return {
            "accuracy": None if self.right is None else self.right.mean().item(),
            "agreement": self.same.mean().item(),
            "kl": self.kl.mean().item(),
        }


def classifier(weights: Path, size: int) -> nn.Module:
    model: Any = timm.create_model(NAME, img_size=size)
    state: Any = load_file(weights)
    model.load_state_dict(checkpoint_filter_fn(state, model))  # resamples the position embeddings
    return model.eval()


def pixels(images: list[Path], model: nn.Module, size: int) -> Tensor:
    cfg: Any = model.pretrained_cfg
    cfg["input_size"] = (3, size, size)
    prepare: Callable[[list[Image.Image]], Tensor] = timm_prepare(model)
    return torch.cat([prepare([Image.open(path).convert("RGB")]) for path in images])


def photographs(data: Path, name: str) -> tuple[list[Path], Tensor | None]:
    if name == "photos500":
        folder = ImageFolder.open(data / name, data / name / "labels.csv")
        return list(folder.paths), torch.tensor(folder.labels)
    lines = (data / "flickr8k" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    return [data / "flickr8k" / json.loads(line)["image"] for line in lines], None


@torch.inference_mode()
def logits(model: nn.Module, x: Tensor, config: turbovlm.Merge | None, batch: int) -> Tensor:
    """``(images, classes)`` in float64."""
    with nullcontext() if config is None else turbovlm.applied(model, config):
        return torch.cat([model(part) for part in x.split(batch)]).double()


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR")
    p.add_argument("--photos", choices=["photos500", "flickr8k"], default="photos500")
    p.add_argument("--size", type=int, nargs="+", choices=R, default=list(R))
    p.add_argument("--r", type=int, nargs="+", help="default: those of the size")
    p.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    p.add_argument("--alpha", type=float, nargs="+", help="also turbo with these numbers")
    p.add_argument("--inflection", type=float, nargs="+", help="also turbo with these schedules")
    p.add_argument(
        "--schedule",
        type=lambda text: tuple(map(int, text.split(","))),
        nargs="+",
        default=[],
        metavar="R,R,...",
        help="also turbo with these r, one for each block",
    )
    p.add_argument(
        "--speedup", type=float, nargs="+", default=[], help="also turbo that reaches this speed-up"
    )
    p.add_argument("--collapse", action="store_true", help="those schedules with collapse")
    p.add_argument(
        "--guide",
        choices=["cls", "mean"],
        default="cls",
        help="mean: as for a model without cls, the mean query's attention is the semantic value",
    )
    p.add_argument("--batch", type=int, default=50)
    p.add_argument("--rounds", type=int, default=0, help="of timing one batch; 0: none")
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


def settings(args: argparse.Namespace, size: int) -> list[turbovlm.Merge]:
    found = []
    for r in args.r or R[size]:
        found += [turbovlm.Merge.from_dict({"r": r, "method": m}) for m in args.method]
        found += [turbovlm.Merge(r=r, alpha=alpha) for alpha in args.alpha or ()]
        found += [turbovlm.Merge(r=r, inflection=late) for late in args.inflection or ()]
    found += [turbovlm.Merge(speedup=wanted) for wanted in args.speedup]
    return found + [turbovlm.Merge(r=r, collapse=args.collapse) for r in args.schedule]


def main() -> None:
    args = parse()
    if args.guide == "mean":
        row = next(r for r in hosts.rows() if r.block.endswith("vision_transformer.Block"))
        turbovlm.register(replace(row, guide="mean", cls=None))
    images, labels = photographs(args.data, args.photos)
    rows: list[dict[str, Any]] = []
    for size in args.size:
        model = classifier(args.data / "vit_tiny_augreg" / f"{NAME}.safetensors", size)
        x = pixels(images, model, size)
        reference = logits(model, x, None, args.batch)
        base = Result.of(reference, reference, labels)
        cost = turbovlm.flops(model, x[:1]).gflops
        rows.append({"size": size, "setting": "unmerged", "r": 0, **base.summary(), "ideal": 1.0})
        turbo: dict[int, Result] = {}
        todo = settings(args, size)
        for config in track(todo, f"{size} px", transient=True):
            result = Result.of(logits(model, x, config, args.batch), reference, labels)
            assert not torch.equal(result.kl, base.kl), "merging changed nothing"
            r = config.r
            with turbovlm.applied(model, config):
                ideal = cost / turbovlm.flops(model, x[:1]).gflops
            row = {"size": size, "setting": repr(config), "r": r, **result.summary()}
            row["ideal"] = ideal
            if isinstance(r, int) and config == turbovlm.Merge(r=r):
                turbo[r] = result
            elif isinstance(r, int) and r in turbo:
                # what this setting costs beyond turbo, image by image
                row["kl_over_turbo"] = interval((result.kl - turbo[r].kl).tolist())
            rows.append(row)
        if args.rounds:
            for row, speed in zip(rows[-len(todo) :], speeds(model, x, todo, args), strict=True):
                row["speed"] = speed
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    Console(width=170).print(table(rows))


def speeds(
    model: nn.Module, x: Tensor, todo: list[turbovlm.Merge], args: argparse.Namespace
) -> list[str]:
    """Measured speed-up of every setting over the unmerged model, in interleaved rounds."""

    @torch.inference_mode()
    def run() -> None:
        model(x[: args.batch])

    variants = {"unmerged": Variant(run)}
    for n, config in enumerate(todo):
        variants[str(n)] = Variant(run, partial(turbovlm.applied, model, config))
    times = compare(variants, Rounds(args.rounds, settle=1))
    return [str(times[str(n)].speedup_over(times["unmerged"])) for n in range(len(todo))]


def table(rows: list[dict[str, Any]]) -> Table:
    heads = (
        "px",
        "setting",
        "ideal",
        "measured [95 %]",
        "accuracy",
        "agreement",
        "KL",
        "KL over turbo [95 %]",
    )
    shown = Table(*heads, box=None)
    for row in rows:
        over = row.get("kl_over_turbo")
        shown.add_row(
            str(row["size"]),
            row["setting"],
            f"{row['ideal']:.2f}x",
            row.get("speed", ""),
            "" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
            f"{row['agreement']:.1%}",
            f"{row['kl']:.4f}",
            "" if over is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*over),
        )
    return shown


if __name__ == "__main__":
    main()
