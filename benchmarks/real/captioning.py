"""What merging in the encoder costs a captioner of photographs, with paired intervals.

    python benchmarks/real/captioning.py --data DATA --json captioning.json

The captioner of train_captioner.py describes the 1000 photographs of Flickr8k's development split,
greedily. BLEU-4 and CIDEr are against the five captions of each. The KL is that of the unmerged
model's next word to the merged one's, in nats a word: mean over the words of the unmerged model's
own caption, then over images. Intervals are those of the mean difference over 10,000 bootstrap
samples of images. DATA holds vit_tiny_augreg and flickr8k.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from flickr8k import END, PAD, SELECT, WORDS, read
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from train_captioner import load
from transformers.modeling_outputs import BaseModelOutput

import turbovlm
from turbovlm.measure import Rounds, compare
from turbovlm_workbench.compare.variants import build_settings
from turbovlm_workbench.metrics.captions import CaptionScores, score_captions
from turbovlm_workbench.metrics.intervals import interval

R = (4, 8, 13, 16)
METHODS = ("turbo", "redundancy", "semantics", "random")
HEAD = Path(__file__).parent / "heads" / "captioner"


@dataclass(frozen=True)
class Result:
    """Captions, their scores, and what they and the next words have of the unmerged model's.

    ``same`` and ``kl`` are float64, one entry an image.
    """

    scores: CaptionScores
    same: Tensor
    kl: Tensor

    def summary(self) -> dict[str, float]:
        return {
            "bleu4": self.scores.bleu[3],
            "cider": self.scores.cider,
            "same": self.same.mean().item(),
            "kl": self.kl.mean().item(),
        }

    @property
    def ciders(self) -> Tensor:
        return torch.tensor(self.scores.ciders, dtype=torch.float64)


class Captioner:
    """The model, its pixels and the truth; everything is compared with the unmerged model."""

    def __init__(self, args: argparse.Namespace) -> None:
        model, self.text, prepare = load(args.data, args.captioner)
        self.model: Any = model
        self.batch, self.beams = args.batch, args.beams
        images, self.truth = read(args.data, args.split)
        if args.split == "train":  # the images that chose the epoch
            images, self.truth = images[-SELECT:], self.truth[-SELECT:]
        parts = [prepare([Image.open(p).convert("RGB")]) for p in track(images, "images")]
        self.pixels = torch.cat(parts)
        self.seen = self.see(None)
        self.said = self.say(self.seen)
        self.base = self.result(self.seen, self.said)

    @torch.inference_mode()
    def see(self, config: turbovlm.Merge | None) -> Tensor:
        """What the encoder makes of the images, ``(images, tokens, channels)``."""
        with nullcontext() if config is None else turbovlm.applied(self.model, config):
            parts = self.pixels.split(self.batch)
            return torch.cat([self.model.encoder(x).last_hidden_state for x in parts])

    @torch.inference_mode()
    def say(self, seen: Tensor) -> Tensor:
        """Ids of the captions, padded to ``(images, WORDS + 1)``."""
        parts = []
        for part in seen.split(self.batch):
            given = BaseModelOutput(last_hidden_state=part)
            ids = self.model.generate(
                encoder_outputs=given, num_beams=self.beams, do_sample=False, max_new_tokens=WORDS
            )
            parts.append(F.pad(ids, (0, WORDS + 1 - ids.shape[1]), value=PAD))
        said = torch.cat(parts)
        # beam search fills up with END, as it takes 0 for no padding token
        over = F.pad((said == END).cumsum(1) > 0, (1, -1))
        return said.masked_fill(over, PAD)

    @torch.inference_mode()
    def kl(self, seen: Tensor) -> Tensor:
        """Per image, mean over the words of the unmerged model's caption and its end."""
        found = []
        for true, part, said in zip(
            self.seen.split(self.batch),
            seen.split(self.batch),
            self.said.split(self.batch),
            strict=True,
        ):
            p, q = (
                self.model.decoder(said[:, :-1], encoder_hidden_states=x, use_cache=False)
                .logits.double()
                .log_softmax(-1)
                for x in (true, part)
            )
            word = said[:, 1:] != PAD
            each = (p.exp() * (p - q)).sum(-1)
            found.append((each * word).sum(1) / word.sum(1))
        return torch.cat(found)

    def result(self, seen: Tensor, said: Tensor) -> Result:
        captions = self.text.batch_decode(said, skip_special_tokens=True)
        same = (said == self.said).all(1).double()
        return Result(score_captions(captions, self.truth), same, self.kl(seen))

    def time(self, settings: Sequence[turbovlm.Merge], rounds: int) -> list[dict[str, Any]]:
        """Of the whole ``generate`` of one batch: the unmerged model first, then the settings."""
        x = self.pixels[: self.batch]
        built = build_settings(self.model, [(setting,) for setting in settings])

        def run(model: Any) -> None:
            model.generate(pixel_values=x, num_beams=self.beams, do_sample=False)

        with torch.inference_mode():
            # by number: settings that differ in alpha alone have one name
            timed = compare(
                {str(i): partial(run, s.model) for i, s in enumerate(built)}, Rounds(rounds)
            )
        base = timed["0"]
        found: list[dict[str, Any]] = []
        for timing in timed.values():
            ratio = timing.speedup_over(base)
            speed = {"images_s": timing.throughput(len(x))}
            found.append({**speed, "speedup": [ratio.value, ratio.low, ratio.high]})
        return found


def settings(args: argparse.Namespace) -> list[turbovlm.Merge]:
    found = []
    for r in args.r:
        found += [turbovlm.Merge.from_dict({"r": r, "method": m}) for m in args.method]
        found += [turbovlm.Merge(r=r, alpha=alpha) for alpha in args.alpha or ()]
        found += [turbovlm.Merge(r=r, inflection=late) for late in args.inflection or ()]
    found += [turbovlm.Merge(speedup=wanted) for wanted in args.speedup]
    return found + [turbovlm.Merge(r=schedule) for schedule in args.schedule]


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR")
    p.add_argument("--captioner", type=Path, default=HEAD, metavar="FOLDER")
    p.add_argument(
        "--split",
        choices=["dev", "train"],
        default="dev",
        help="train: the 500 of it that the decoder was not trained on, to look for reasons",
    )
    p.add_argument("--r", type=int, nargs="+", default=R)
    p.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    p.add_argument("--alpha", type=float, nargs="+", help="also turbo with these numbers")
    p.add_argument("--inflection", type=float, nargs="+", help="also turbo with these schedules")
    p.add_argument("--speedup", type=float, nargs="+", default=[], help="also turbo with these")
    p.add_argument(
        "--schedule",
        type=lambda text: tuple(map(int, text.split(","))),
        nargs="+",
        default=[],
        help="also turbo with these r a block",
    )
    p.add_argument("--beams", type=int, default=1)
    p.add_argument("--batch", type=int, default=50)
    p.add_argument("--rounds", type=int, default=10, help="of timing; 0: none")
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


def main() -> None:
    args = parse()
    it = Captioner(args)
    todo = settings(args)
    rows: list[dict[str, Any]] = [{"setting": "unmerged", "r": 0, **it.base.summary()}]
    turbo: dict[int, Result] = {}
    for config in track(todo, "settings"):
        seen = it.see(config)
        result = it.result(seen, it.say(seen))
        assert result.kl.min() > 1e-9, "merging changed nothing"
        r = config.r if isinstance(config.r, int) else 0
        row = {"setting": repr(config), "r": r, **result.summary()}
        if r and config == turbovlm.Merge(r=r):
            turbo[r] = result
        elif r in turbo:  # by how much turbo is better, image by image
            row["cider_under_turbo"] = interval((turbo[r].ciders - result.ciders).tolist())
            row["kl_over_turbo"] = interval((result.kl - turbo[r].kl).tolist())
        rows.append(row)
        _write(rows, args.json)
    if args.rounds:
        for row, speed in zip(rows, it.time(todo, args.rounds), strict=True):
            row |= speed
        _write(rows, args.json)
    Console(width=170).print(table(rows))


def _write(rows: list[dict[str, Any]], file: Path | None) -> None:
    if file:
        file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> Table:
    heads = ("setting", "BLEU-4", "CIDEr", "same", "KL", "CIDEr below turbo [95 %]")
    shown = Table(*heads, "KL over turbo [95 %]", "images/s", "speed-up [95 %]", box=None)
    for row in rows:
        over = [row.get("cider_under_turbo"), row.get("kl_over_turbo")]
        speed = row.get("speedup")
        shown.add_row(
            row["setting"],
            f"{row['bleu4']:.3f}",
            f"{row['cider']:.3f}",
            f"{row['same']:.1%}",
            f"{row['kl']:.4f}",
            *("" if x is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*x) for x in over),
            f"{row['images_s']:.1f}" if "images_s" in row else "",
            "" if speed is None else "{:.3f} [{:.3f}, {:.3f}]".format(*speed),
        )
    return shown


if __name__ == "__main__":
    main()
