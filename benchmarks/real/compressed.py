"""Merging on top of quantization and pruning: does what is left still merge as well?

    python benchmarks/real/compressed.py --data DATA --rounds 9 --json compressed.json

ViT-Ti/16 AugReg at 224 px on 500 labelled photographs, compressed without training in five ways,
each unmerged and merged. The KL is to the same compressed model unmerged, so that it is what
merging costs and nothing else; the accuracy is what both leave. Speeds are over the model as it
came.
DATA holds vit_tiny_augreg and photos500; quantization needs torchao, and pruning of all channels,
which reads some photographs of flickr8k, torch-pruning.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from classification import NAME, Result, classifier, logits, photographs, pixels
from pruning import pruned_vit
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import prune

import turbovlm
from turbovlm.measure.speed import Rounds, Variant, compare
from turbovlm_workbench.metrics.intervals import interval

ZEROED = 0.3
NARROWED = 0.05
CALIBRATION = 32


def as_it_came(model: Any) -> None:
    """fp32, whole."""


def int8_weights(model: Any) -> None:
    """Weights in int8, products in fp32."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())


def int8_products(model: Any) -> None:
    """Weights and activations in int8, the latter scaled token by token as they come."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())


def zeroed(model: Any) -> None:
    """The weights of least magnitude of every linear layer of the blocks are zero."""
    for block in model.blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                prune.l1_unstructured(layer, "weight", ZEROED)
                prune.remove(layer, "weight")


def narrowed(model: Any) -> None:
    """The MLPs without the neurons whose weights, in times out, are the smallest."""
    for block in model.blocks:
        first, second = block.mlp.fc1, block.mlp.fc2
        weight = first.weight.norm(dim=1) * second.weight.norm(dim=0)
        kept = weight.topk(round(len(weight) * (1 - NARROWED))).indices.sort().values
        first.weight, first.bias = _part(first.weight[kept]), _part(first.bias[kept])
        second.weight = _part(second.weight[:, kept])
        first.out_features = second.in_features = len(kept)


def _part(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x.detach().contiguous(), requires_grad=False)


WAYS: dict[str, Callable[[Any], None]] = {
    "fp32": as_it_came,
    "int8 weights": int8_weights,
    "int8 products": int8_products,
    f"{ZEROED:.0%} of the weights zero": zeroed,
    f"{NARROWED:.0%} of the MLP neurons out": narrowed,
}
CHANNELS = f"{NARROWED:.0%} of the channels of heads and MLPs out"


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR")
    p.add_argument("--r", type=int, nargs="+", default=[8, 16])
    p.add_argument(
        "--only", nargs="+", choices=(*WAYS, CHANNELS), metavar="NAME", help="of these ways"
    )
    p.add_argument("--limit", type=int, help="of the photographs; default all")
    p.add_argument("--batch", type=int, default=50)
    p.add_argument("--rounds", type=int, default=0, help="of timing one batch; 0: none")
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


def main() -> None:
    args = parse()
    images, labels = photographs(args.data, "photos500")
    plain = classifier(args.data / "vit_tiny_augreg" / f"{NAME}.safetensors", 224)
    x = pixels(images[: args.limit], plain, 224)
    labels = None if labels is None else labels[: args.limit]
    models: dict[str, nn.Module] = {}
    for name in args.only or (*WAYS, CHANNELS):
        if name == CHANNELS:
            others, _ = photographs(args.data, "flickr8k")
            models[name] = pruned_vit(plain, pixels(others[:CALIBRATION], plain, 224), NARROWED)
        else:
            models[name] = copy.deepcopy(plain)
            WAYS[name](models[name])
    merges = [None, *(turbovlm.Merge(r=r) for r in args.r)]
    rows: list[dict[str, Any]] = []
    costs: dict[int, Tensor] = {}
    for name, model in track(models.items(), "models", transient=True):
        reference = logits(model, x, None, args.batch)
        for merge, r in zip(merges, (0, *args.r), strict=True):
            outputs = reference if merge is None else logits(model, x, merge, args.batch)
            assert merge is None or not torch.equal(outputs, reference), "merging changed nothing"
            result = Result.of(outputs, reference, labels)
            row = {"model": name, "r": r, **result.summary()}
            if name == "fp32":
                costs[r] = result.kl
            elif r and costs:
                row["kl_over_fp32"] = interval((result.kl - costs[r]).tolist())
            rows.append(row)
    if args.rounds:
        for row, speed in zip(rows, speeds(models, merges, x[: args.batch], args), strict=True):
            row["speed"] = speed
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    Console(width=150).print(table(rows))


def speeds(
    models: dict[str, nn.Module],
    merges: list[turbovlm.Merge | None],
    x: Tensor,
    args: argparse.Namespace,
) -> list[str]:
    """Of every model and setting over the first, in interleaved rounds."""

    @torch.inference_mode()
    def run(model: nn.Module) -> None:
        model(x)

    variants = {
        f"{name}, {merge}": Variant(
            partial(run, model),
            *(() if merge is None else (partial(turbovlm.applied, model, merge),)),
        )
        for name, model in models.items()
        for merge in merges
    }
    times = list(compare(variants, Rounds(args.rounds, settle=1)).values())
    return [str(time.speedup_over(times[0])) for time in times]


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(
        "model", "r", "speed-up [95 %]", "accuracy", "same top-1", "KL", "beyond fp32's [95 %]",
        box=None,
    )  # fmt: skip
    for row in rows:
        over = row.get("kl_over_fp32")
        shown.add_row(
            row["model"],
            str(row["r"]),
            row.get("speed", ""),
            f"{row['accuracy']:.1%}",
            f"{row['agreement']:.1%}",
            f"{row['kl']:.4f}",
            "" if over is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*over),
        )
    return shown


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torchao")
    main()
