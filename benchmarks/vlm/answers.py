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
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from criteria import CRITERIA, Reduced, Seen, dropped, whole
from model import Answers, Lab
from rich.console import Console
from rich.progress import track
from rich.table import Table

import turbovlm
from turbovlm.measure import environment, flops
from turbovlm_lab import vlm
from turbovlm_workbench.metrics.captions import score_captions
from turbovlm_workbench.metrics.intervals import interval

KEEPS = (2, 4, 9, 16)
DRAWS = 3
TOWER_R = 8  # of `merge`: a third of the tokens in eight blocks
TOPICS = ("colour", "shape", "size", "position", "count", "presence", "word")

Scores = dict[str, np.ndarray]
"""One value a scene; NaN where a scene has no such question."""


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


def criteria(lab: Lab, seen: Seen, keep: int) -> Iterator[tuple[str, list[Reduced]]]:
    """Every criterion with what it leaves; several draws of what is random."""
    for name, reduce in CRITERIA.items():
        if name == "random":
            yield name, [dropped(seen, keep, "random", seed) for seed in range(DRAWS)]
        else:
            yield name, [reduce(seen, keep)]
    yield "resize", [lab.resized(keep)]
    yield "tome", [in_tower(lab, keep)]
    merged, _ = lab.merged(turbovlm.Merge(r=TOWER_R))
    yield "merge", [CRITERIA["ours"](merged, keep)]
    more = min(vlm.IMAGE_TOKENS - 8 * TOWER_R, keep + paid(lab))
    yield "merge, equal cost", [CRITERIA["ours"](merged, more)]


def in_tower(lab: Lab, keep: int) -> Reduced:
    """The tokens that merging by redundancy in the tower leaves, each once."""
    blocks = lab.model.config.vision_config.num_hidden_layers
    r = removals(vlm.IMAGE_TOKENS, keep, blocks)
    seen, at = lab.merged(turbovlm.Merge(r=r, method="redundancy"))
    features = seen.features.gather(1, at.unsqueeze(2).expand(-1, -1, seen.features.shape[2]))
    return Reduced(features, at)


def removals(tokens: int, keep: int, blocks: int) -> tuple[int, ...]:
    """As many a block, or the same share where a block cannot merge that many."""
    gone = tokens - keep
    even = tuple(gone // blocks + (block < gone % blocks) for block in range(blocks))
    if keep + even[-1] >= 2 * even[-1]:
        return even
    left = [round(tokens * (keep / tokens) ** (b / blocks)) for b in range(blocks + 1)]
    return tuple(before - after for before, after in itertools.pairwise(left))


def paid(lab: Lab) -> int:
    """Visual tokens that the language model reads for what merging spares the tower."""
    pixels = {"pixel_values": torch.zeros(1, 3, 224, 224)}
    tower = lab.model.model.vision_tower
    before = flops(tower, pixels).macs
    with turbovlm.applied(tower, turbovlm.Merge(r=TOWER_R)):
        after = flops(tower, pixels).macs
    language = lab.model.model.language_model
    each = sum(p.numel() for p in language.layers.parameters())
    return int((before - after) // each)


def difference(mine: np.ndarray, ours: np.ndarray) -> list[float]:
    """Mean difference and its interval, over the scenes that have both."""
    both = ~np.isnan(mine) & ~np.isnan(ours)
    return list(interval((mine - ours)[both].tolist()))


def measure(lab: Lab) -> list[dict[str, Any]]:
    """One row a criterion and count, the whole prompt first."""
    seen = lab.see()
    base = lab.answers(whole(seen))
    rows = [row_of("whole", vlm.IMAGE_TOKENS, scores(lab, base, base), None)]
    for part in track(KEEPS, "keep"):
        keep = round(vlm.IMAGE_TOKENS / part)
        ours: Scores | None = None
        for name, given in criteria(lab, seen, keep):
            drawn = [scores(lab, lab.answers(one), base) for one in given]
            mean = {key: np.mean([one[key] for one in drawn], axis=0) for key in drawn[0]}
            ours = mean if ours is None else ours
            rows.append(row_of(name, given[0].at.shape[1], mean, ours) | {"keep": f"1/{part}"})
    return rows


def row_of(name: str, tokens: int, found: Scores, ours: Scores | None) -> dict[str, Any]:
    """Means, and the differences to ours of what the intervals are for."""
    row: dict[str, Any] = {"criterion": name, "tokens": tokens}
    row |= {key: float(np.nanmean(values)) for key, values in found.items()}
    if ours is not None and name != "ours":
        row["minus ours"] = {
            key: difference(found[key], ours[key]) for key in ("answers", "word", "cider", "kl")
        }
    return row


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
    rows = measure(Lab(args.split, args.start, args.scenes, args.weights))
    Console(width=200).print(table(rows))
    if args.json:
        facts = {"split": args.split, "start": args.start, "scenes": args.scenes}
        report = {**facts, "environment": environment("cpu"), "rows": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
