"""Merging on top of GPTQ: the lab's vision-language model in 8 and 4 bits, unmerged and merged.

    python benchmarks/vlm/gptq.py --scenes 400 --json gptq.json

The linear layers of the language model are rounded to the nearest, or quantized by GPTQ on
training scenes, to the same grid; the vision encoder stays. Unseen test scenes are answered by each
model unmerged, with `Merge` in the tower, with a quarter of the visual tokens, and with both. An
answer is right to the letter or wrong; the KL is that of the unmerged fp32 model's next token to
this one's. "merging costs" is over the same model unmerged, "beyond fp32's" how much more than that
costs without quantization; intervals are over 10,000 bootstrap samples of scenes. Bytes are those
of the packed layers, operations those of an image and a question, to the first token.

It needs the extra gptq.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from criteria import Reduced, library, whole
from model import Answers, Lab
from quantized import Grid, Quantizer, gptq, nearest, quantize_layers, weight_bytes
from rich.console import Console
from rich.progress import track
from rich.table import Table

import turbovlm
from turbovlm.errors import require
from turbovlm.measure import environment, flops
from turbovlm.measure.speed import Rounds, Variant, compare
from turbovlm_lab import reading
from turbovlm_workbench.metrics.intervals import interval

R, KEEP = 8, 49
CALIBRATION = 32
ASKED = "<image>what word is printed?"


@dataclass(frozen=True)
class Way:
    """A language model in few bits; without a grid, fp32."""

    name: str
    quantizer: Quantizer | None = None
    grid: Grid | None = None


WAYS = (
    Way("fp32"),
    *(
        Way(f"{bits} bit, {name}", quantizer, Grid(bits))
        for bits in (8, 4)
        for name, quantizer in (("nearest", nearest), ("GPTQ", gptq))
    ),
)


@dataclass(frozen=True)
class Merging:
    """What is applied to the model, and the visual tokens that its language model gets."""

    name: str
    settings: tuple[Any, ...] = ()

    def on(self, model: Any) -> AbstractContextManager[object]:
        """The model merges while this is open."""
        return turbovlm.applied(model, *self.settings) if self.settings else nullcontext()

    def given(self, lab: Lab) -> Reduced:
        """Visual tokens of all scenes; the tower is fp32, so one model's are every model's."""
        tower = [s for s in self.settings if isinstance(s, turbovlm.Merge)]
        seen = lab.merged(tower[0])[0] if tower else lab.see()
        keep = any(isinstance(s, turbovlm.VisualTokens) for s in self.settings)
        return library(seen, KEEP) if keep else whole(seen)


MERGE, TOKENS = turbovlm.Merge(r=R), turbovlm.VisualTokens(keep=KEEP)
MERGINGS = (
    Merging(""),
    Merging(f"Merge(r={R})", (MERGE,)),
    Merging(f"VisualTokens(keep={KEEP})", (TOKENS,)),
    Merging("both", (MERGE, TOKENS)),
)


def compress(model: Any, way: Way, calibration: Lab) -> Any:
    """A copy of the model whose language model is quantized."""
    model = copy.deepcopy(model)
    if way.quantizer is None or way.grid is None:
        return model
    features = whole(calibration.see()).features
    rows = reading.text_rows(calibration.told)

    def show() -> None:
        for part in torch.arange(len(features)).split(32):
            some = reading.Rows(*(field[part] for field in rows))
            reading.predicted(model, features[part], some)

    quantize_layers(model.model.language_model.layers, show, way.quantizer, way.grid)
    return model


def measured(lab: Lab, models: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a model and merging."""
    given = [merging.given(lab) for merging in MERGINGS]
    first: Answers | None = None
    costs: dict[str, dict[str, np.ndarray]] = {}
    for name, model in track(models.items(), "models", transient=True):
        lab.model = model
        own: Answers | None = None
        for merging, tokens in zip(MERGINGS, given, strict=True):
            answers = lab.answers(tokens, captions=False)
            first = answers if first is None else first
            own = answers if own is None else own
            row: dict[str, Any] = {
                "model": name,
                "merged": merging.name,
                "answers": interval(shares(answers).tolist()),
                "captions": float(np.mean([dict(told)["caption"] for told in answers.right])),
                "kl": answers.kl(first).mean().item(),
                **facts(model, merging, lab.processor),
            }
            if merging.settings:
                assert not torch.equal(answers.logits, own.logits), "merging changed nothing"
                cost = {"answers": shares(answers) - shares(own), "kl": answers.kl(own).numpy()}
                row["merging costs"] = {k: interval(v.tolist()) for k, v in cost.items()}
                plain = costs.setdefault(merging.name, cost)
                if plain is not cost:
                    row["beyond fp32's"] = {
                        k: interval((cost[k] - plain[k]).tolist()) for k in cost
                    }
            yield row


def shares(answers: Answers) -> np.ndarray:
    """Of the questions that are answered right, one value a scene."""
    return np.array(
        [np.mean([good for topic, good in told if topic != "caption"]) for told in answers.right]
    )


def facts(model: Any, merging: Merging, processor: Any) -> dict[str, Any]:
    """Bytes of the language model's layers and of all, and operations to the first token."""
    with merging.on(model):
        count = flops(model, question(processor, 1), call=first_token)
    return {
        "layer_bytes": weight_bytes(model.model.language_model.layers),
        "bytes": weight_bytes(model),
        "gmacs": count.gmacs,
    }


def question(processor: Any, images: int) -> dict[str, Any]:
    """Inputs of as many grey pictures and a question about each."""
    picture = np.full((224, 224, 3), 127, dtype=np.uint8)
    made = processor(images=[picture] * images, text=[ASKED] * images, return_tensors="pt")
    return dict(made)


@torch.inference_mode()
def first_token(model: Any, inputs: dict[str, Any]) -> object:
    """One forward of pictures and prompts."""
    return model(**inputs, logits_to_keep=1)


def speeds(models: dict[str, Any], processor: Any, rounds: int) -> list[str]:
    """Processor time to the first tokens of 8 questions, over fp32 unmerged; one thread."""
    inputs = question(processor, 8)
    variants = {
        f"{name}, {merging.name}": Variant(
            partial(first_token, model, inputs), partial(merging.on, model)
        )
        for name, model in models.items()
        for merging in MERGINGS
    }
    times = list(compare(variants, Rounds(rounds, settle=1, clock="cpu")).values())
    return [str(time.speedup_over(times[0])) for time in times]


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(
        "model", "merged", "layers, kB", "GFLOPs", "processor time", "answers right, %",
        "merging costs [95 %]", "beyond fp32's", "captions exact", "KL", "of merging",
        "beyond fp32's",
        box=None, pad_edge=False,
    )  # fmt: skip
    for row in rows:
        cost, over = row.get("merging costs"), row.get("beyond fp32's")
        shown.add_row(
            row["model"],
            row["merged"],
            f"{row['layer_bytes'] / 1e3:.0f}",
            f"{row['gmacs']:.3f}",
            row.get("speed", ""),
            "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in row["answers"])),
            spread(cost, "answers", 100, 1),
            spread(over, "answers", 100, 1),
            f"{100 * row['captions']:.1f}",
            f"{row['kl']:.4f}",
            spread(cost, "kl", 1, 4),
            spread(over, "kl", 1, 4),
        )
    return shown


def spread(values: dict[str, Any] | None, key: str, factor: float, digits: int) -> str:
    """A mean and its interval, signed; nothing where there is none."""
    if values is None:
        return ""
    mean, low, high = (f"{factor * x:+.{digits}f}" for x in values[key])
    return f"{mean} [{low}, {high}]"


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--split", choices=("validation", "test"), default="test")
    p.add_argument("--scenes", type=int, default=400)
    p.add_argument("--rounds", type=int, default=0, help="of timing, on one thread; 0: none")
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    require("gptqmodel", "gptq")
    torch.manual_seed(0)
    lab = Lab(args.split, 1000, args.scenes)
    calibration = Lab("train", 0, CALIBRATION)
    models = {way.name: compress(lab.model, way, calibration) for way in track(WAYS, "quantize")}
    rows = list(measured(lab, models))
    if args.rounds:
        for row, speed in zip(rows, speeds(models, lab.processor, args.rounds), strict=True):
            row["speed"] = speed
    Console(width=230).print(table(rows))
    if args.json:
        told = {"split": args.split, "scenes": args.scenes, "calibration": CALIBRATION}
        report = {**told, "environment": environment("cpu"), "rows": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
