"""Random command lines on small models: an exit code that means something, and no traceback."""

from __future__ import annotations

import contextlib
import functools
import io
import random
import tempfile
from pathlib import Path

from tests.fuzz.trials import claim
from tests.workbench import build
from turbovlm_workbench.cli.app import run_command

ODD = (
    "", "-1", "0", "1e9", "nan", "inf", "ü", "\x1b[31m", "[bold]", "$x^2$", "no/such/file", "/",
    ".", "-", "--", "a b", "1,2", "turbo", "999999999999999999999", "\udcff",
)  # fmt: skip
WORDS = {
    "--r": ("4", "8", "0"),
    "--method": ("turbo", "redundancy", "random"),
    "--alpha": ("2", "0"),
    "--batch": ("1", "2"),
    "--rounds": ("1", "2"),
    "--device": ("cpu", "meta", "cuda:99"),
    "--dtype": ("fp32", "bf16"),
    "--limit": ("1", "2"),
    "--workers": ("0", "1"),
    "--split": ("test", "train"),
    "--beams": ("1", "2"),
    "--top": ("1",),
    "--minutes": ("0.01",),
    "--side": ("32", "64"),
    "--speedup": ("1.2",),
    "--keep": ("0.5",),
}
PATHS = ("--images", "--labels", "--weights", "--data", "--out", "--json", "--html", "--config",
         "--against", "--plot", "--save")  # fmt: skip
FLAGS = ("--collapse", "--json", "--fused", "--help", "--paper", "--version")
COMMANDS = ("bench", "sweep", "tune", "check", "flops", "models", "eval classification",
            "eval captioning", "eval retrieval", "eval vqa", "generate", "frobnicate")  # fmt: skip


@functools.cache
def _place() -> tuple[tempfile.TemporaryDirectory[str], tuple[str, ...]]:
    """A folder of inputs, kept while the program runs, and the paths in it."""
    kept = tempfile.TemporaryDirectory()
    folder = Path(kept.name)
    build.photos(folder / "photos", 3)
    rows = ["photo0.jpg,1", "photo2.jpg,2", "sub/photo1.jpg,3"]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    (folder / "captions.jsonl").write_text(
        '{"image": "photo0.jpg", "captions": ["a word1"]}\n', encoding="utf-8"
    )
    (folder / "broken.json").write_text("{", encoding="utf-8")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    build.timm_weights(folder / "tiny.safetensors")
    build.vit_classifier(folder / "vit")
    build.blip(folder / "blip")
    build.clip(folder / "clip")
    return kept, tuple(str(path) for path in sorted(folder.iterdir()))


def commands(rng: random.Random) -> None:
    """Whatever is typed, it ends with 0, 1 or 2, an error is one line, and no input is lost."""
    _, paths = _place()
    before = {path: _content(Path(path)) for path in paths}
    with tempfile.TemporaryDirectory() as folder:
        outputs = (str(Path(folder) / "out"), str(Path(folder) / "deep" / "out.json"))
        line = rng.choice(COMMANDS).split()
        if rng.random() < 0.8:
            models = (f"timm:{build.TINY}", *(p for p in paths if "." not in Path(p).name), "lab:x")
            model = rng.choice(models)
            line += ["--model", model] if line[0] == "eval" else [model]
        for _ in range(rng.randint(0, 6)):
            line += _option(rng, paths + outputs)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = run_command(line)
            except SystemExit as leaving:
                code = leaving.code
    told = err.getvalue()
    claim(code in (0, 1, 2), f"{line}: exit {code}: {told[-600:]}")
    claim("Traceback" not in told + out.getvalue(), f"{line}: a traceback: {told[-600:]}")
    if code == 2 and "Usage" not in out.getvalue():
        last = told.strip().splitlines()[-1:]
        claim(bool(last) and last[0].startswith("error:"), f"{line}: says {told[-300:]!r}")
    after = {path: _content(Path(path)) for path in paths}
    changed = [path for path in paths if before[path] != after[path]]
    claim(not changed, f"{line}: changed {changed}")


def _option(rng: random.Random, paths: tuple[str, ...]) -> list[str]:
    kind = rng.random()
    if kind < 0.45:
        name = rng.choice(list(WORDS))
        return [name, rng.choice(WORDS[name] if rng.random() < 0.7 else ODD)]
    if kind < 0.9:
        return [rng.choice(PATHS), rng.choice(paths if rng.random() < 0.8 else ODD)]
    return [rng.choice(FLAGS)]


def _content(path: Path) -> bytes | list[str]:
    if path.is_dir():
        return sorted(str(p) for p in path.rglob("*"))
    return path.read_bytes() if path.exists() else b""
