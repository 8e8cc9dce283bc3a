"""Fewer visual tokens for the language model: time to first token, tokens a second, memory.

    python benchmarks/tokens.py --shape small --batch 1 --threads 1 --clock cpu
    python benchmarks/tokens.py --shape llava-1.5-7b qwen2.5-vl-3b --device cuda --dtype bf16

Random weights. Three sides run interleaved on one model in memory: *off* is the model as it is,
*ours* chooses tokens, and the *limit* runs the same tower and hands over as many tokens, the first
ones, without choosing: what is between the two is the cost of choosing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokens_models import SHAPES, Shape
from torch import Tensor

import turbovlm
from turbovlm.config.visual_tokens import VisualTokens
from turbovlm.measure import Rounds, Variant, compare, environment, peak_memory
from turbovlm.plug.language.shorten import shorten
from turbovlm.plug.language.state import LanguageCall
from turbovlm.plug.swap import site_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Bench:
    """One model, one batch, one share of tokens kept."""

    def __init__(self, model: Any, shape: Shape, batch: int, keep: Fraction, device: str) -> None:
        self.model, self.shape, self.batch = model, shape, batch
        self.config = VisualTokens(keep=float(keep))
        self.kept = self.config.count(shape.tokens)
        dtype = next(model.parameters()).dtype
        self.images = {
            n: v.to(device, dtype) if v.is_floating_point() else v.to(device)
            for n, v in shape.images(batch).items()
        }
        self.full = {n: v.to(device) for n, v in shape.prompt(batch, shape.tokens).items()}
        self.short = {n: v.to(device) for n, v in shape.prompt(batch, self.kept).items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        with turbovlm.applied(self.model, self.config, record=False):
            yield

    def first(self) -> Tensor:
        """Logits of the first token, whole model."""
        return self.model(**self.full, **self.images, logits_to_keep=1).logits

    def sliced(self) -> Tensor:
        """The same tower, and a prompt with as many tokens as ours hands over."""
        features = self.model.model.get_image_features(**self.images)
        features.pooler_output = [f[: self.kept] for f in features.pooler_output]
        given = {n: v for n, v in self.short.items() if n != "mm_token_type_ids"}
        count = torch.arange(given["input_ids"].shape[1], device=given["input_ids"].device)
        position = count.expand(self.batch, -1)
        if self.shape.axes > 1:
            position = position.expand(self.shape.axes, -1, -1)
        return self.model(
            **given,
            position_ids=position,
            mm_encoder_outputs={"image": features},
            logits_to_keep=1,
        ).logits

    def answer(self, tokens: int) -> Tensor:
        """A whole answer."""
        return self.model.generate(
            **self.full, **self.images, max_new_tokens=tokens, do_sample=False
        )

    def choosing(self) -> Callable[[], object]:
        """The part of ours that is not the host's: what `shorten` does to one prompt."""
        seen: dict[str, Any] = {}
        module = self.model.model.language_model

        def note(part: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen.update(kwargs)

        handle = module.register_forward_pre_hook(note, with_kwargs=True)
        features = self.model.model.get_image_features(**self.images)
        self.model(**self.full, mm_encoder_outputs={"image": features}, use_cache=False)
        handle.remove()

        def run() -> object:
            patch = site_of(self.model.model).patch
            call = LanguageCall(self.full["input_ids"], self.full["attention_mask"])
            call.features["image"] = features.pooler_output
            with patch.running(call):
                return shorten(patch, module, seen)

        return run


def measure(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    rounds = Rounds(args.rounds, warmup=2, device=args.device, clock=args.clock)
    variants = {
        "off": Variant(bench.first),
        "limit": Variant(bench.sliced),
        "ours": Variant(bench.first, bench.applied),
    }
    with bench.applied():
        shown = bench.first()
    assert shown.shape[1] == 1
    times = compare(variants, rounds)
    chosen = compare({"choosing": Variant(bench.choosing(), bench.applied)}, rounds)["choosing"]
    answers = {}
    if args.new:
        run = lambda: bench.answer(args.new)  # noqa: E731
        whole = {"off": Variant(run), "ours": Variant(run, bench.applied)}
        answers = compare(whole, replace(rounds, number=min(3, args.rounds), warmup=1))
    ms = {side: t.median_s * 1e3 for side, t in times.items()}
    return {
        "batch": bench.batch,
        "keep": bench.config.keep,
        "visual_tokens": [bench.shape.tokens, bench.kept],
        "prompt_tokens": [v["input_ids"].shape[1] for v in (bench.full, bench.short)],
        "first_token_ms": ms,
        "iqr_ms": {side: t.iqr * 1e3 for side, t in times.items()},
        "speedup": {s: str(times[s].speedup_over(times["off"])) for s in ("limit", "ours")},
        "choosing_ms": chosen.median_s * 1e3,
        "choosing_share": chosen.median_s * 1e3 / ms["ours"],
        "new_tokens": args.new,
        "tokens_per_second": {s: t.throughput(bench.batch * args.new) for s, t in answers.items()},
        "peak_bytes": {s: peak_memory(v, device=args.device) for s, v in variants.items()},
    }


def table(results: list[dict[str, Any]]) -> Table:
    shown = Table(title="fewer visual tokens for the language model", title_style="bold")
    heads = (
        "model",
        "batch",
        "keep",
        "tokens",
        "first token ms off",
        "limit",
        "ours",
        "speed-up limit",
        "ours",
        "choosing ms",
        "share",
        "tokens/s off",
        "ours",
        "peak MiB off",
        "limit",
        "ours",
    )
    for head in heads:
        shown.add_column(head, justify="left" if head == "model" else "right", no_wrap=True)
    for row in results:
        speed = row["tokens_per_second"]
        shown.add_row(
            row["shape"],
            str(row["batch"]),
            f"{row['keep']:.3f}",
            "{} to {}".format(*row["prompt_tokens"]),
            *(f"{row['first_token_ms'][s]:.1f}" for s in ("off", "limit", "ours")),
            *(row["speedup"][s] for s in ("limit", "ours")),
            f"{row['choosing_ms']:.2f}",
            f"{row['choosing_share']:.1%}",
            *(f"{speed[s]:.0f}" if speed else "" for s in ("off", "ours")),
            *(f"{row['peak_bytes'][s] / 2**20:.0f}" for s in ("off", "limit", "ours")),
        )
    return shown


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--shape", nargs="+", choices=SHAPES, default=["small"])
    p.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    keeps = [Fraction(1), Fraction(1, 2), Fraction(1, 4), Fraction(1, 9)]
    p.add_argument("--keep", nargs="+", type=Fraction, default=keeps, help="e.g. 1/4")
    p.add_argument("--new", type=int, default=32, help="tokens of an answer; 0 for none")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", choices=DTYPES, help="default bf16 on an accelerator")
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--threads", type=int, help="CPU threads; default torch's own")
    p.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, steady on a busy machine; only with --threads 1",
    )
    p.add_argument("--json", type=Path, metavar="FILE")
    return p.parse_args()


@torch.inference_mode()
def main() -> None:
    args, console = parse(), Console()
    if args.clock == "cpu" and args.threads != 1:
        raise SystemExit("--clock cpu counts threads that wait for each other: add --threads 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = DTYPES[args.dtype or ("fp32" if args.device == "cpu" else "bf16")]
    facts = {**environment(args.device), "dtype": str(dtype), "clock": args.clock}
    results: list[dict[str, Any]] = []
    for name in args.shape:
        shape = SHAPES[name]
        model = shape.model(args.device, dtype)
        for batch in args.batch:
            for keep in args.keep:
                bench = Bench(model, shape, batch, keep, args.device)
                results.append({"shape": name, **measure(bench, args)})
                console.print(f"{name}, batch {batch}, keep {keep}: done", highlight=False)
                if args.json:  # after every setting: a long run that is stopped keeps what it has
                    text = json.dumps({"environment": facts, "results": results}, indent=1)
                    args.json.write_text(text + "\n", encoding="utf-8")
        del model
    Console(width=max(console.width, 200)).print(table(results))
    console.print(", ".join(f"{k} {v}" for k, v in facts.items()), highlight=False)


if __name__ == "__main__":
    main()
