"""Is the promise of ``turbovlm tune`` kept on photographs that it has not seen?

    python benchmarks/real/tuning.py --data DATA --max-loss 0.01 --clock cpu

ViT-Ti/16 AugReg is tuned on every second one of 500 labelled photographs and checked on the others,
or (``--photos flickr8k``) tuned on 300 photographs of Flickr8k's training split and checked on 300
of its development split. The check compares judges: the accuracy that is really lost, where there
are labels; the confidence that `turbovlm tune` counts without them; the accuracy that would be lost
if the model were calibrated; the share of changed classes. DATA holds vit_tiny_augreg, photos500
and flickr8k.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import turbovlm
from turbovlm.measure import Rounds, compare
from turbovlm_workbench.compare.plan import BenchPlan
from turbovlm_workbench.data.images import ImageFolder
from turbovlm_workbench.report.tune import tune_lines, tune_table
from turbovlm_workbench.settings import Settings
from turbovlm_workbench.tasks.image import batches
from turbovlm_workbench.tasks.registry import load_task
from turbovlm_workbench.tune.goal import Goal
from turbovlm_workbench.tune.tune import Tuned, tune

FLICKR = 300


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR")
    p.add_argument("--photos", choices=["photos500", "flickr8k"], default="photos500")
    p.add_argument("--labels", action="store_true", help="tune on the labels of photos500")
    p.add_argument("--max-loss", type=float, default=0.01)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


def photographs(data: Path, name: str) -> tuple[ImageFolder, ImageFolder]:
    """To tune on, and to check on."""
    if name == "flickr8k":
        return _flickr(data / name, "train"), _flickr(data / name, "dev")
    whole = ImageFolder.open(data / name, data / name / "labels.csv")
    return _every_second(whole, 0), _every_second(whole, 1)


def _every_second(whole: ImageFolder, first: int) -> ImageFolder:
    assert whole.labels is not None
    return ImageFolder(whole.root, whole.paths[first::2], whole.labels[first::2])


def _flickr(root: Path, split: str) -> ImageFolder:
    records = (root / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:FLICKR]
    return ImageFolder(root, tuple(root / json.loads(record)["image"] for record in records))


def judges(before: Tensor, after: Tensor, labels: tuple[int, ...] | None) -> dict[str, Tensor]:
    """What each image loses, from logits ``(images, classes)``, by four judges."""
    p, was, now = before.softmax(-1), before.argmax(-1), after.argmax(-1)
    p_was, p_now = (p.gather(1, top[:, None])[:, 0] for top in (was, now))
    found = {
        "confidence lost": 1 - p_now / p_was,
        "expected accuracy lost": p_was - p_now,
        "classes changed": (was != now).double(),
    }
    if labels is None:
        return found
    truth = torch.tensor(labels)
    return {"accuracy lost": (was == truth).double() - (now == truth).double(), **found}


def check(task: Any, images: ImageFolder, settings: Settings) -> dict[str, tuple[float, float]]:
    """Mean and standard error by judge."""
    logits = []
    for applied in ((turbovlm.Merge(r=0),), settings):
        with turbovlm.applied(task.model, *applied):
            parts = batches(task, images, range(len(images)), 25)
            logits.append(torch.cat([task.outputs(task.model, x) for _, x in parts]).double())
    before, after = logits
    found = judges(before, after, images.labels)
    return {
        name: (fmean(values), stdev(values) / len(values) ** 0.5)
        for name, values in ((name, losses.tolist()) for name, losses in found.items())
    }


def main() -> None:
    args = parse()
    mine, others = photographs(args.data, args.photos)
    weights = args.data / "vit_tiny_augreg" / "vit_tiny_patch16_224.safetensors"
    task = load_task("timm:vit_tiny_patch16_224", weights)
    labelled = task.with_labels(mine.labels if args.labels else None)
    timer = partial(compare, rounds=Rounds(args.rounds, clock=args.clock))
    found = tune(labelled, mine, Goal(args.max_loss), BenchPlan(args.batch), timer=timer)
    console = Console(width=160)
    console.print(tune_table(found))
    console.print("\n".join(tune_lines(found, Path("turbo.json"))), highlight=False)
    unseen = None if found.closest is None else check(task, others, found.closest.settings)
    if unseen is not None:
        console.print(_table(unseen, len(others)))
    if args.json:
        args.json.write_text(json.dumps(_plain(found, unseen), indent=1) + "\n", encoding="utf-8")


def _plain(found: Tuned, unseen: dict[str, tuple[float, float]] | None) -> dict[str, Any]:
    return {"tuned": found.to_dict(), "unseen": unseen}


def _table(unseen: dict[str, tuple[float, float]], images: int) -> Table:
    shown = Table("judge", f"on {images} unseen photographs", box=None)
    for name, (mean, error) in unseen.items():
        shown.add_row(name, f"{mean:.2%} ± {error:.2%}")
    return shown


if __name__ == "__main__":
    main()
