"""What fewer visual tokens cost a real image-to-LaTeX model, by criterion.

    python benchmarks/vlm/latex.py --data DATA --json latex.json

DATA holds latex_ocr and formulas. The encoder makes 1024 tokens of a page; its decoder's
cross-attention gets those that a criterion leaves. The first half of the 100 pages is for choosing
(``--pages first``), the second for reporting. *exact* and *edit* (similarity) are against the LaTeX
of the page, after the normaliser of DATA; *agreement* and KL are those of the next token along the
reading of the model with all tokens. Intervals are of the mean difference to ours over pages.

`merge` is `Merge` in the encoder to three quarters of the tokens, then ours to the same count;
`tome` merges by redundancy in the encoder until as many are left, each handed over once.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from criteria import CRITERIA, Reduced, Seen, chosen, whole
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F
from tower import KEEPS, Scores, removals

import turbovlm
from turbovlm.measure import environment
from turbovlm.plug.language.picture import grid_picture
from turbovlm_workbench.metrics.intervals import interval

GRID, PATCH = (16, 64), 8
SMALL = {2: (11, 46), 4: (8, 32), 9: (5, 23), 16: (4, 16)}
"""Grids of a smaller picture, by what part of the tokens they hold."""
END, STEPS, BATCH = 2, 200, 10
TOWER_R = 64  # a block of four: 256 of 1024
NAMES = (*(n for n in CRITERIA if n not in ("ours", "pooled")), "resize", "tome", "merge")
"""Of the criteria beside ours; pooling is for squares."""


class Reader:
    """The model, the pages of one half, and what it reads with all tokens."""

    def __init__(self, data: Path, half: str, count: int) -> None:
        folder = data / "latex_ocr"
        loading, self.normalise = (_module(folder / f"{n}.py") for n in ("load", "normalise"))
        self.encoder, decoder, self.words = loading.load(folder)
        self.decoder: Any = decoder
        given = (data / "formulas" / "formulas.jsonl").read_text("utf-8").splitlines()
        records = [json.loads(line) for line in given]
        records = (records[:50] if half == "first" else records[50:])[:count]
        self.truth = [r["latex"] for r in records]
        self.pages = torch.stack([loading.prepare(data / "formulas" / r["image"]) for r in records])
        self.settings = json.loads((folder / "encoder_timm.json").read_text())
        place = grid_picture(1, *GRID).place
        assert place is not None
        self.place = place
        self.seen = self.see()
        self.ids = self.read(whole(self.seen))
        self.next = self.logits(whole(self.seen))

    @torch.inference_mode()
    def see(self) -> Seen:
        """The tokens of all pages, and what VisionZip reads of the encoder."""
        made: list[Tensor] = []
        block = self.encoder.blocks[-1].attn
        hook = block.qkv.register_forward_hook(lambda _, __, out: made.append(out))
        features = torch.cat([self.encoder(x) for x in self.pages.split(BATCH)])
        hook.remove()
        attended, keys = [], []
        for qkv in made:
            q, k, _ = qkv.unflatten(2, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
            shares = [
                (a @ b.transpose(-1, -2) * block.scale).softmax(-1)
                for a, b in zip(q, k, strict=True)
            ]
            attended.append(torch.stack([s.mean((0, 1)) for s in shares]))
            keys.append(k.transpose(1, 2).flatten(2))
        return Seen(features, self.place, torch.cat(attended), torch.cat(keys))

    @torch.inference_mode()
    def merged(self, config: turbovlm.Merge) -> Seen:
        """The tokens with merging in the encoder, all positions restored."""
        with turbovlm.applied(self.encoder, config, record=False):
            features = torch.cat([self.encoder(x) for x in self.pages.split(BATCH)])
        return Seen(features, self.place, features[..., 0], features)

    @torch.inference_mode()
    def in_encoder(self, keep: int) -> Reduced:
        """The tokens that merging by redundancy in the encoder leaves, each once."""
        r = removals(len(self.place), keep, len(self.encoder.blocks))
        features = []
        with turbovlm.applied(self.encoder, turbovlm.Merge(r=r, method="redundancy")) as run:
            for x in self.pages.split(BATCH):
                seen = self.encoder(x)
                at = run.traces[-1].survivors()
                features.append(seen.gather(1, at.unsqueeze(2).expand(-1, -1, seen.shape[2])))
        found = torch.cat(features)
        return Reduced(found, torch.zeros(found.shape[:2], dtype=torch.int64))

    @torch.inference_mode()
    def resized(self, grid: tuple[int, int]) -> Reduced:
        """The tokens of smaller pages, position embeddings resampled."""
        size = (grid[0] * PATCH, grid[1] * PATCH)
        norm = partial(torch.nn.LayerNorm, eps=1e-6)
        small = VisionTransformer(norm_layer=norm, **(self.settings | {"img_size": size}))
        state = dict(self.encoder.state_dict())
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [*grid], [*GRID], 0)
        small.load_state_dict(state)
        pages = F.interpolate(self.pages, size, mode="bilinear", antialias=True)
        features = torch.cat([small.eval()(x) for x in pages.split(BATCH)])
        return Reduced(features, torch.zeros(features.shape[:2], dtype=torch.int64))

    @torch.inference_mode()
    def read(self, given: Reduced) -> Tensor:
        """Greedy ids ``(pages, steps)``, the first token given, padded with END."""
        found = []
        for seen in given.features.split(BATCH):
            ids = torch.ones(len(seen), 1, dtype=torch.int64)
            past, last, ended = None, ids, torch.zeros(len(seen), dtype=torch.bool)
            for _ in range(STEPS):
                out = self.decoder(
                    input_ids=last, encoder_hidden_states=seen, past_key_values=past, use_cache=True
                )
                past, logits = out.past_key_values, out.logits[:, -1]
                logits[:, :END] = -torch.inf
                last = logits.argmax(-1, keepdim=True).masked_fill(ended[:, None], END)
                ids, ended = torch.cat([ids, last], 1), ended | (last[:, 0] == END)
                if ended.all():
                    break
            found.append(F.pad(ids, (0, STEPS + 1 - ids.shape[1]), value=END))
        return torch.cat(found)

    @torch.inference_mode()
    def logits(self, given: Reduced) -> list[Tensor]:
        """Of the next token along the full reading, page by page ``(tokens, V)``."""
        found = []
        for ids, seen in zip(self.ids, given.features, strict=True):
            length = int((ids != END).sum()) + 1
            out = self.decoder(input_ids=ids[None, : length - 1], encoder_hidden_states=seen[None])
            found.append(out.logits[0].double().log_softmax(-1))
        return found

    def scores(self, given: Reduced, *, read: bool) -> Scores:
        """One value a page; *exact* and *edit* only where it is ``read``."""
        agreement, kl = [], []
        for base, q in zip(self.next, self.logits(given), strict=True):
            agreement.append((base.argmax(-1) == q.argmax(-1)).double().mean().item())
            kl.append((base.exp() * (base - q)).sum(-1).mean().item())
        found = {"agreement": np.array(agreement), "kl": np.array(kl)}
        if read:
            texts = [
                "".join(self.words[i] for i in row if i > 3) for row in self.read(given).tolist()
            ]
            norm, distance = self.normalise.norm, self.normalise.ed
            pairs = [(norm(a), norm(b)) for a, b in zip(texts, self.truth, strict=True)]
            found["exact"] = np.array([float(a == b) for a, b in pairs])
            found["edit"] = np.array(
                [1 - distance(a, b) / max(len(a), len(b), 1) for a, b in pairs]
            )
        return found


def criteria(
    reader: Reader, part: int, names: Collection[str]
) -> Iterator[tuple[str, list[Reduced]]]:
    """The criteria of these names with what they leave; several draws of what is random."""
    seen, keep = reader.seen, 1024 // part
    yield from chosen(seen, keep, names)
    if "resize" in names:
        yield "resize", [reader.resized(SMALL[part])]
    if "tome" in names:
        yield "tome", [reader.in_encoder(keep)]
    if "merge" in names:
        yield "merge", [CRITERIA["ours"](reader.merged(turbovlm.Merge(r=TOWER_R)), keep)]


def measure(reader: Reader, names: Collection[str], read: bool) -> list[dict[str, Any]]:
    """One row a criterion and count, all tokens first."""
    rows = [row_of("whole", 1024, reader.scores(whole(reader.seen), read=read), None)]
    for part in track(KEEPS, "keep"):
        ours: Scores | None = None
        for name, given in criteria(reader, part, names):
            drawn = [reader.scores(one, read=read) for one in given]
            found = {key: np.mean([one[key] for one in drawn], axis=0) for key in drawn[0]}
            ours = found if ours is None else ours
            rows.append({"keep": f"1/{part}"} | row_of(name, given[0].at.shape[1], found, ours))
    return rows


def row_of(name: str, tokens: int, found: Scores, ours: Scores | None) -> dict[str, Any]:
    """Means, and the differences to ours."""
    row: dict[str, Any] = {"criterion": name, "tokens": tokens}
    row |= {key: float(values.mean()) for key, values in found.items()}
    if ours is not None and name != "ours":
        row["minus ours"] = {
            key: list(interval((found[key] - ours[key]).tolist())) for key in found
        }
    return row


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    measures = [key for key in ("exact", "edit", "agreement", "kl") if key in rows[0]]
    for header in ("keep", "criterion", "tokens", *measures, f"{measures[-2]} minus ours"):
        shown.add_column(header, justify="left" if header in ("keep", "criterion") else "right")
    for row in rows:
        cells = [row.get("keep", ""), row["criterion"], str(row["tokens"])]
        cells += [f"{row[k]:.3f}" if k == "kl" else f"{100 * row[k]:.1f}" for k in measures]
        gap = row.get("minus ours", {}).get(measures[-2])
        shown.add_row(
            *cells,
            "" if gap is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * x for x in gap)),
        )
    return shown


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"latex_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR")
    p.add_argument("--pages", choices=("first", "second"), default="second", help="half")
    p.add_argument("--read", action="store_true", help="decode too: exact and edit similarity")
    p.add_argument("--count", type=int, default=50, help="pages of that half, the first ones")
    p.add_argument("--criteria", nargs="+", choices=NAMES, default=NAMES, help="beside ours")
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    reader = Reader(args.data, args.pages, args.count)
    rows = measure(reader, {"ours", *args.criteria}, args.read)
    Console(width=160).print(table(rows))
    if args.json:
        facts = {"pages": args.pages, "count": len(reader.pages)}
        report = {**facts, "environment": environment("cpu"), "rows": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
