"""What fewer visual tokens cost the lab's vision-language model, by criterion.

    python benchmarks/vlm/answers.py --split test --scenes 400 --json quality.json

Every criterion hands the language model as many of the 196 visual tokens of unseen scenes, at the
positions that they had. An answer is right to the letter or wrong; CIDEr is that of the greedy
caption against the scene's own; the KL is that of the whole prompt's next token to the shortened
one's, in nats a token, over all tokens of the true answers. Intervals are those of the mean
difference to ours over 10,000 bootstrap samples of scenes. `resize` and `pooled` get at least as
many tokens, as many as fill a square; `random` is the mean over draws.

`tome` merges by redundancy in the tower until as many are left. `merge` is `Merge` in the tower and
`VisualTokens` in one: to the same count, and with as many tokens more as the tower's merging pays
for (`merge, equal cost`).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from criteria import CRITERIA, whole
from model import Answers, Lab
from rich.console import Console
from rich.table import Table
from tower import Scores, measure

from turbovlm.measure import environment
from turbovlm_workbench.metrics.captions import score_captions

TOPICS = ("colour", "shape", "size", "position", "count", "presence", "word")


def scores(lab: Lab, found: Answers, base: Answers) -> Scores:
    """Shares right a scene, by topic and of all questions; CIDEr, exact captions and KL."""
    columns: dict[str, list[float]] = defaultdict(list)
    for pairs in found.right:
        by: dict[str, list[bool]] = defaultdict(list)
        for topic, good in pairs:
            by[topic].append(good)
        questions = [good for topic in TOPICS for good in by[topic]]
        columns["answers"].append(float(np.mean(questions)))
        columns["caption"].append(float(by["caption"][0]))
        for topic in TOPICS:
            columns[topic].append(float(np.mean(by[topic])) if by[topic] else np.nan)
    truth = [[told[0].answer] for told in lab.told]
    columns["cider"] = list(score_captions(found.captions, truth).ciders)
    columns["kl"] = found.kl(base).tolist()
    return {name: np.array(values) for name, values in columns.items()}


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("answers", "minus ours", *TOPICS, "caption", "cider", "kl")
    for header in ("keep", "criterion", "tokens", *columns):
        shown.add_column(header, justify="left" if header in ("keep", "criterion") else "right")
    for row in rows:
        cells = [row.get("keep", ""), row["criterion"], str(row["tokens"])]
        for key in columns:
            if key == "minus ours":
                gap = row.get(key, {}).get("answers")
                text = (
                    ""
                    if gap is None
                    else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in gap))
                )
            else:
                text = f"{row[key]:.3f}" if key in ("cider", "kl") else f"{100 * row[key]:.1f}"
            cells.append(text)
        shown.add_row(*cells)
    return shown


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--split", choices=("validation", "test"), default="validation")
    p.add_argument("--start", type=int, default=1000, help="behind those that training looked at")
    p.add_argument("--scenes", type=int, default=400)
    p.add_argument("--weights", help="folder of the lab's weights, if not the package's")
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    torch.manual_seed(0)
    lab = Lab(args.split, args.start, args.scenes, args.weights)
    seen = lab.see()
    base = lab.answers(whole(seen))
    gaps = ("answers", "word", "cider", "kl")
    rows = measure(lab, seen, lambda given: scores(lab, lab.answers(given), base), CRITERIA, gaps)
    Console(width=200).print(table(rows))
    if args.json:
        facts = {"split": args.split, "start": args.start, "scenes": args.scenes}
        report = {**facts, "environment": environment("cpu"), "rows": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
