"""What merging costs in quality: the lab's painter draws test captions with every method.

    python benchmarks/generation/quality.py --out runs
    python benchmarks/generation/quality.py --out runs --method turbo redundancy tomesd \\
        --setting '{}' '{"cross_attention": 0, "feed_forward": 0}' --ratio 0.3 0.5

Every method draws the same prompts from the same noise, so that methods are compared prompt by
prompt: an interval is that of a mean difference over bootstrap samples of prompts. Configurations
are kept in --out as they are done; a run that was stopped goes on. It ends with results.json,
quality.md, quality.png and pictures.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import METHODS, TOMESD, Candidate, add_setting, candidates
from rich.progress import Progress
from scoring import Pictures, Reader, Sheet
from showing import curves, gallery, markdown
from summary import Entry, summarise

import turbovlm
from turbovlm.errors import TurboError
from turbovlm_lab import painter
from turbovlm_lab.grammar import describe
from turbovlm_lab.scenes import Object, layout, scene

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True)
class Task:
    """What is drawn, the same by every method."""

    painter: str
    prompts: int
    first: int
    split: str
    steps: int
    guidance: float

    @property
    def seeds(self) -> list[int]:
        """Of the scenes that the prompts describe."""
        return painter.subjects(self.split, self.first, self.prompts)

    @property
    def objects(self) -> list[tuple[Object, ...]]:
        """Of every prompt."""
        return [layout(seed) for seed in self.seeds]

    def real(self) -> Pictures:
        """The scenes that the prompts describe, at the painter's size."""
        pixels = painter.shrink([scene(seed).image for seed in self.seeds])
        return ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()

    def draw(self, pipe: Any, batch: int, progress: Callable[[int], None]) -> Pictures:
        """One picture a prompt; its noise depends on the prompt's number alone."""
        prompts, drawn = [describe(objects) for objects in self.objects], []
        for start in range(0, self.prompts, batch):
            part = prompts[start : start + batch]
            seeds = [self.first + start + i for i in range(len(part))]
            drawn += pipe(
                part,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            ).images
            progress(len(drawn))
        return np.stack([np.asarray(image) for image in drawn])


class Folder:
    """Where sheets are kept, one file a configuration."""

    def __init__(self, path: Path, task: Task) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        held, mine = path / "task.json", json.dumps(dataclasses.asdict(task))
        if held.is_file() and held.read_text(encoding="utf-8") != mine:
            raise SystemExit(f"{path} holds pictures of another task ({held}): give another --out")
        held.write_text(mine, encoding="utf-8")

    def sheet(self, name: str, make: Callable[[], Sheet]) -> tuple[Sheet, bool]:
        """The sheet of that name, and whether it was made now."""
        path = self.path / f"{name}.npz"
        if path.is_file():
            return Sheet.load(path), False
        made = make()
        made.save(path)
        return made, True


def file_name(candidate: Candidate) -> str:
    """Differs with the setting, and for turbovlm with the code that merges."""
    told = [json.dumps(candidate.config.to_dict(), sort_keys=True).encode()]
    if candidate.method != TOMESD:
        root = Path(turbovlm.__file__).parent
        sources = [*root.glob("maths/*.py"), *root.glob("plug/generation/*.py")]
        told += [path.read_bytes() for path in sorted(sources)]
    digest = hashlib.sha256(b"".join(told)).hexdigest()[:12]
    return f"{candidate.method}-{candidate.config.ratio}-{digest}"


def measure(args: argparse.Namespace, found: Sequence[Candidate]) -> None:
    """Draw, read, write."""
    pipe, reader = painter.load_painter(args.painter), Reader()
    digest = hashlib.sha256()
    for path in sorted(Path(args.painter).rglob("*.safetensors")):
        digest.update(path.read_bytes())
    task = Task(
        digest.hexdigest()[:12], args.prompts, args.first, args.split, args.steps, args.guidance
    )
    folder, objects = Folder(args.out, task), task.objects
    tokens = pipe.unet.config.sample_size**2
    with Progress(transient=True) as bar:
        overall = bar.add_task("configurations", total=len(found) + 1)
        pictures = bar.add_task("pictures", total=task.prompts)

        def draw() -> Sheet:
            drawn = task.draw(pipe, args.batch, lambda n: bar.update(pictures, completed=n))
            return reader.sheet(drawn, objects)

        real, _ = folder.sheet("real", lambda: reader.sheet(task.real(), objects))
        base, _ = folder.sheet("unmerged", draw)
        bar.advance(overall)
        sheets: list[tuple[Candidate, Sheet]] = []
        for candidate in found:
            bar.update(pictures, description=f"{candidate.label} {candidate.config.ratio}")

            def merged(candidate: Candidate = candidate) -> Sheet:
                torch.manual_seed(0)  # tomesd draws its destinations from a copy of this generator
                candidate.apply(pipe, tokens)
                try:
                    return draw()
                finally:
                    candidate.remove(pipe)

            start = time.perf_counter()
            sheet, new = folder.sheet(file_name(candidate), merged)
            sheets.append((candidate, sheet))
            if new:
                line = {
                    "label": candidate.label,
                    "config": candidate.config.to_dict(),
                    "right": float(sheet.right.mean()),
                    "exact": float(sheet.exact.mean()),
                    "squared": float(sheet.squared(base).mean()),
                    "seconds": round(time.perf_counter() - start, 1),
                }
                with (args.out / "done.jsonl").open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(line) + "\n")
                told = ", ".join(f"{k} {line[k]:.3f}" for k in ("right", "exact", "squared"))
                bar.console.print(f"{candidate.label} {candidate.config.ratio}: {told}")
            bar.advance(overall)
    entries = summarise(real, base, sheets, args.samples)
    write(args, task, entries)
    gallery(args.out / "pictures.png", real, base, sheets, [describe(o) for o in objects], args)


def write(args: argparse.Namespace, task: Task, entries: Sequence[Entry]) -> None:
    """results.json, quality.md and quality.png."""
    whole = {"task": dataclasses.asdict(task), "results": [e.to_dict() for e in entries]}
    text = json.dumps(whole, indent=1) + "\n"
    (args.out / "results.json").write_text(text, encoding="utf-8")
    (args.out / "quality.md").write_text(markdown(entries, task.prompts), encoding="utf-8")
    curves(args.out / "quality.png", entries)
    print(markdown(entries, task.prompts))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--painter", type=Path, default=painter.WEIGHTS, metavar="DIR")
    p.add_argument("--prompts", type=int, default=256)
    p.add_argument("--first", type=int, default=0, help="number of the first scene")
    p.add_argument(
        "--split",
        choices=["test", "validation"],
        default="test",
        help="validation: to choose a setting by",
    )
    p.add_argument("--steps", type=int, default=painter.STEPS)
    p.add_argument("--guidance", type=float, default=painter.GUIDANCE)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--ratio", type=float, nargs="+", default=RATIOS)
    p.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    add_setting(p)
    p.add_argument("--samples", type=int, default=200, help="bootstrap samples of the FID")
    p.add_argument("--show", type=int, default=6, metavar="N", help="prompts in pictures.png")
    p.add_argument("--threads", type=int, help="CPU threads; default torch's own")
    return p.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    measure(args, candidates(args.method, args.ratio, args.setting))


if __name__ == "__main__":
    try:
        main()
    except TurboError as error:
        raise SystemExit(f"error: {error}") from error
