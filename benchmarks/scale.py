"""`turbovlm run` measured: pictures a second, memory over many pictures, a worker that is killed.

    python benchmarks/scale.py rate --pictures 600
    python benchmarks/scale.py worker --pictures 64
    python benchmarks/scale.py memory --pictures 100000
    python benchmarks/scale.py kill

Runs the command itself and watches its processes (Linux). See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image

import turbovlm
from turbovlm_workbench.run.identity import model_digest
from turbovlm_workbench.scale.parts import LISTING, read_part
from turbovlm_workbench.scale.source import open_source, write_listing
from turbovlm_workbench.scale.work import Asked, load_work
from turbovlm_workbench.scale.worker import Employment, Worker
from turbovlm_workbench.settings import Settings

# random weights: a ViT-S/16 with 197 tokens, and what costs next to nothing
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
        "num_attention_heads": 6, "image_size": 224, "patch_size": 16,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 4,
    },
}  # fmt: skip
WORKER = "ray::MapWorker"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Sample:
    """What the processes of a run hold and have used.

    Attributes:
        seconds: since the start.
        parts: that are written.
        mib: proportional memory (PSS) of the command, the workers and all others.
        processor: seconds of all workers together.
    """

    seconds: float
    parts: int
    mib: dict[str, float] = field(default_factory=dict)
    processor: float = 0.0


def make_model(folder: Path, shape: str) -> Path:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SHAPES[shape])
    transformers.ViTModel(config).save_pretrained(folder)
    side = SHAPES[shape]["image_size"]
    transformers.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def make_pictures(path: Path, number: int, side: int, group: int = 1000) -> Path:
    """A Parquet file of smooth random JPEGs, all different."""
    rng = np.random.default_rng(0)
    schema = pa.schema({"image": pa.binary()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, number, group):
            rows = [_jpeg(rng, side) for _ in range(min(group, number - start))]
            writer.write_table(pa.table({"image": rows}, schema=schema))
    return path


def _jpeg(rng: np.random.Generator, side: int) -> bytes:
    coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def processes(root: int) -> Iterator[tuple[int, str, list[str]]]:
    """Number, command line and fields of ``stat`` of a process and all below it."""
    parents: dict[int, list[tuple[int, str, list[str]]]] = {}
    for entry in Path("/proc").iterdir():
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if entry.name.isdigit():
            parents.setdefault(int(stat[1]), []).append((int(entry.name), words, stat))
    waiting = [root]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            waiting.append(child[0])
            yield child


def pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def sample(root: int, out: Path, start: float, memory: bool) -> Sample:
    found = Sample(time.perf_counter() - start, len(list((out / "parts").glob("part-*"))))
    kinds: list[tuple[int, str, list[str]]] = [(root, "command", [])]
    for pid, words, stat in processes(root):
        kinds.append((pid, "workers" if words.startswith(WORKER) else "others", stat))
    for pid, kind, stat in kinds:
        if memory:
            found.mib[kind] = found.mib.get(kind, 0.0) + pss(pid)
        if kind == "workers":
            found.processor += (int(stat[11]) + int(stat[12])) / TICKS
    return found


def watch(words: list[str], out: Path, every: float, kill_at: int = 0) -> tuple[list[Sample], dict]:
    """Run a command line of turbovlm; the samples, and what it printed.

    Args:
        words: after ``turbovlm``.
        out: its ``--out``.
        every: seconds between samples; from 5 on, with memory.
        kill_at: kill one worker as soon as so many parts are written; 0 kills none.
    """
    start = time.perf_counter()
    argv = [sys.executable, "-m", "turbovlm", *words, "--out", str(out), "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        samples: list[Sample] = []
        while run.poll() is None:
            time.sleep(every)
            samples.append(sample(run.pid, out, start, every >= 5))
            if kill_at and samples[-1].parts >= kill_at:
                workers = [p for p, name, _ in processes(run.pid) if name.startswith(WORKER)]
                os.kill(workers[0], signal.SIGKILL)
                print(f"killed worker {workers[0]} of {workers} after {samples[-1].parts} parts")
                kill_at = 0
        printed, errors = run.communicate()
    if run.returncode:
        sys.exit(f"{' '.join(words)}: exit code {run.returncode}\n{errors}")
    return samples, json.loads(printed)


def rates(samples: list[Sample], part: int) -> tuple[float, float]:
    """Pictures a second, and a second of the workers' processor time, from the first part on."""
    steady = [s for s in samples if s.parts and s.processor]
    first, last = steady[0], steady[-1]
    done = (last.parts - first.parts) * part
    return done / (last.seconds - first.seconds), done / (last.processor - first.processor)


def rate(args: argparse.Namespace, place: Path) -> None:
    model = make_model(place / "model", "small")
    data = make_pictures(place / "pictures.parquet", args.pictures, 256, 100)
    settings = {"unmerged": [], f"r={args.r}": ["--r", str(args.r)]}
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for number in range(args.rounds):
        for workers in args.workers:
            for name, flags in settings.items():
                out = place / f"{number}-{workers}-{name}"
                words = ["run", "embed", str(model), "--data", str(data), *flags]
                words += ["--workers", str(workers), "--part", str(args.part), "--batch", "16"]
                samples, _ = watch(words, out, 0.5)
                found.setdefault((workers, name), []).append(rates(samples, args.part))
                print(workers, name, *(f"{x:.2f}" for x in found[workers, name][-1]), flush=True)
    print("| workers | setting | pictures/s | pictures/s of processor time |\n|---|---|---|---|")
    for (workers, name), values in found.items():
        wall, processor = (median(column) for column in zip(*values, strict=True))
        print(f"| {workers} | {name} | {wall:.1f} | {processor:.1f} |")


def worker(args: argparse.Namespace, place: Path) -> None:
    """One worker in this process, without Ray: both settings in turns, on processor time."""
    torch.set_num_threads(1)
    asked = Asked("embed", str(make_model(place / "model", "small")))
    digest = model_digest(load_work(asked).parts)
    source = open_source(make_pictures(place / "pictures.parquet", args.pictures, 256), None)
    write_listing(source.parts(), place / LISTING)
    (table,) = read_part(source, place / LISTING, 0)
    settings: dict[str, Settings] = {"unmerged": (), f"r={args.r}": (turbovlm.Merge(r=args.r),)}
    workers = {
        name: Worker(Employment(asked, applied, digest, "cpu", "fp32"))
        for name, applied in settings.items()
    }
    spent = {name: list[float]() for name in workers}
    for number in range(args.rounds + 1):  # the first warms up
        for name, one in workers.items():
            start = time.process_time()
            for first in range(0, len(table), 16):
                one(table.slice(first, 16))
            if number:
                spent[name].append(time.process_time() - start)
    for name, seconds in spent.items():
        print(f"{name}: {len(table) / median(seconds):.1f} pictures a second of processor time")


def memory(args: argparse.Namespace, place: Path) -> None:
    model = make_model(place / "model", "tiny")
    data = make_pictures(place / "pictures.parquet", args.pictures, 48)
    words = ["run", "embed", str(model), "--data", str(data), "--r", "4"]
    samples, done = watch([*words, "--workers", "2", "--batch", "64"], place / "out", 5)
    ids = pq.read_table(place / "out" / "parts", columns=["id"])["id"]
    print(f"{len(ids)} pictures, {len(ids.unique())} different, in {done['seconds']:.0f} s")
    print("| pictures | command MiB | workers MiB | all others MiB | together MiB |")
    print("|---|---|---|---|---|")
    steady = [s for s in samples if s.parts and "workers" in s.mib]
    for one in steady[:: max(1, len(steady) // 10)] + steady[-1:]:
        parts = [one.mib[kind] for kind in ("command", "workers", "others")]
        row = [min(one.parts * 1000, args.pictures), *(round(x) for x in (*parts, sum(parts)))]
        print("|", " | ".join(map(str, row)), "|")


def kill(args: argparse.Namespace, place: Path) -> None:
    model = make_model(place / "model", "tiny")
    data = make_pictures(place / "pictures.parquet", args.pictures, 48)
    words = ["run", "embed", str(model), "--data", str(data), "--r", "4", "--workers", "2"]
    words += ["--part", str(args.part)]
    tables = []
    for name, after in (("killed", 3), ("whole", 0)):
        watch(words, place / name, 0.2, after)
        tables.append(pq.read_table(place / name / "parts").sort_by("id"))
    killed, whole = tables
    ids = killed["id"].to_pylist()
    same = np.array_equal(*(t["embedding"].combine_chunks().flatten() for t in tables))
    lost = len(set(whole["id"].to_pylist()) - set(ids))
    print(f"{args.pictures} pictures: {lost} lost, {len(ids) - len(set(ids))} doubled")
    print(f"embeddings {'equal to' if same else 'DIFFERENT FROM'} those of a run without a kill")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("rate", "worker", "memory", "kill"))
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--part", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        modes = {"rate": rate, "worker": worker, "memory": memory, "kill": kill}
        modes[args.what](args, Path(folder))


if __name__ == "__main__":
    main()
