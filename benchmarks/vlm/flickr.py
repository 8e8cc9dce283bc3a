"""What fewer visual tokens cost a small LLaVA that describes photographs, by criterion.

    python benchmarks/vlm/flickr.py --data DATA --images 100 --json flickr.json

The model of benchmarks/real/train_llava.py describes the first photographs of Flickr8k's dev
split. Every criterion hands its Llama as many of the 196 visual tokens, at the positions that they
had. CIDEr is that of greedy captions against five a photograph; the KL is that of all tokens' next
word to the shortened prompt's, in nats a word, along those five. Intervals are those of the mean
difference to ours over 10,000 bootstrap samples of photographs. The criteria are those of
answers.py. *sized* is the KL where every visual token counts in the Llama's attention for as many
as are most similar to it. Before the rows stands what needs no picture: the commonest caption of
the training split for all, and the model with no visual token.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from criteria import Reduced, Seen, whole
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from tower import BATCH, Pictures, Scores, measure, row_of

from turbovlm.measure import environment
from turbovlm_workbench.metrics.captions import score_captions

REAL = Path(__file__).parents[1] / "real"
sys.path.insert(0, str(REAL))

import train_llava  # noqa: E402
from flickr8k import END, PAD, SELECT, Packed, numbers, read, words  # noqa: E402

HEAD = REAL / "heads" / "llava"
NAMES = ("ours", "random", "uniform", "divprune", "visionzip")
GAPS = ("cider", "kl", "sized")


class Flickr(Pictures):
    """The model, some photographs and their captions.

    Args:
        data: the folder of real data.
        head: what train_llava.py wrote.
        split: ``dev``, or ``train`` for the photographs that chose the epoch.
        images: how many.
    """

    def __init__(self, data: Path, head: Path, split: str, images: int) -> None:
        model, processor, prepare = train_llava.load(data, head)
        files, truth = read(data, split)
        first = slice(4500, 5000) if split == "train" else slice(None)
        files, self.truth = files[first][:images], truth[first][:images]
        self.text: Any = processor.tokenizer
        opened = track(files, "photographs")
        super().__init__(
            model, torch.cat([prepare([Image.open(f).convert("RGB")]) for f in opened])
        )
        rows = [numbers(self.text, END, five) for five in self.truth]
        self.packed = [Packed.of(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]

    @torch.inference_mode()
    def next(self, given: Reduced, size: Tensor | None = None) -> list[Tensor]:
        """Logarithms of the next words' shares along the captions, ``(M, V)`` a batch.

        With ``size`` ``(I, K)`` a visual token counts as many times in the attention.
        """
        size = torch.ones(given.at.shape) if size is None else size
        parts = (x.split(BATCH) for x in (given.features, given.at, size))
        return [
            train_llava.logits(self.model, image, packed, at, n).log_softmax(-1)
            for packed, image, at, n in zip(self.packed, *parts, strict=True)
        ]

    def kl(self, base: list[Tensor], other: list[Tensor]) -> np.ndarray:
        """``(I,)``, mean over the words of an image."""
        found = []
        for p, q, packed in zip(base, other, self.packed, strict=True):
            each = (p.double().exp() * (p - q).double()).sum(-1)
            word = packed.next != PAD
            total = torch.zeros(word.shape, dtype=torch.float64)
            total[word] = each
            found.append(total.sum(1) / word.sum(1))
        return torch.cat(found).numpy()

    def ciders(self, captions: list[str]) -> np.ndarray:
        """``(I,)``."""
        return np.array(score_captions(captions, self.truth).ciders)

    def scores(self, given: Reduced, base: list[Tensor]) -> Scores:
        """CIDEr, KL and sized KL of each photograph."""
        said = train_llava.greedy(self.model, self.text, given.features, given.at)
        found = {"cider": self.ciders(said), "kl": self.kl(base, self.next(given))}
        sized = np.full(len(self.truth), np.nan)
        if given.size is not None:
            sized = self.kl(base, self.next(given, given.size))
        return {**found, "sized": sized}


def blind(flickr: Flickr, seen: Seen, base: list[Tensor], data: Path) -> list[dict[str, Any]]:
    """Rows of what needs no picture."""
    _, training = read(data, "train")
    common = Counter(" ".join(words(c)) for five in training[:-SELECT] for c in five)
    caption = common.most_common(1)[0][0]
    always = {"cider": flickr.ciders([caption] * len(flickr.truth))}
    none = Reduced(seen.features[:, :0], torch.zeros(len(seen.features), 0, dtype=torch.int64))
    return [
        row_of(f"always: {caption}", 0, always, None, ()),
        row_of("no visual token", 0, flickr.scores(none, base), None, ()),
    ]


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("keep", "criterion"):
        shown.add_column(header)
    for header in ("tokens", "CIDEr", "minus ours", "KL", "minus ours", "sized", "minus ours"):
        shown.add_column(header, justify="right")
    for row in rows:
        cells = [row.get("keep", ""), row["criterion"], str(row["tokens"])]
        for key in GAPS:
            gap = row.get("minus ours", {}).get(key)
            cells.append(f"{row[key]:.3f}" if key in row else "")
            cells.append("" if gap is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gap))
        shown.add_row(*cells)
    return shown


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR")
    p.add_argument("--head", type=Path, default=HEAD, metavar="FOLDER")
    p.add_argument("--split", choices=("dev", "train"), default="dev", help="train: to look why")
    p.add_argument("--images", type=int, default=1000)
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    flickr = Flickr(args.data, args.head, args.split, args.images)
    seen = flickr.see()
    base = flickr.next(whole(seen))
    rows = blind(flickr, seen, base, args.data)
    rows += measure(flickr, seen, lambda given: flickr.scores(given, base), NAMES, GAPS)
    Console(width=170).print(table(rows))
    if args.json:
        facts = {"split": args.split, "images": len(flickr.truth)}
        report = {**facts, "environment": environment("cpu"), "rows": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
