"""A task and a metric from another package, as the command line finds them, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workbench import build
from turbovlm.errors import ConfigError
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.metrics.registry import MetricValues, metrics_for, register_metric
from turbovlm_workbench.tasks.registry import build_task, register_task, scored_tasks
from turbovlm_workbench.tasks.request import Request
from turbovlm_workbench.tasks.vqa import VQA

# Is the class of an image the same when it is mirrored? And is a label the second guess?
PACKAGE = """
from dataclasses import dataclass

from turbovlm_workbench.data.images import find_images
from turbovlm_workbench.load.models import load_model
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.metrics.registry import MetricValues, register_metric
from turbovlm_workbench.tasks.registry import register_task
from turbovlm_workbench.tasks.scored import ScoredTask, Stage

SAME = Measure("same", "same class", "share of images whose class survives mirroring")
SECOND = Measure("second", "second", "share of images whose label is the second guess")


@register_metric("mirrored", SAME)
def same(predictions, references):
    return MetricValues({"same": [float(p == r) for p, r in zip(predictions, references)]})


@register_metric("classification", SECOND)
def second(predictions, references):
    return MetricValues({"second": [float(p[1] == r) for p, r in zip(predictions, references)]})


@register_task
@dataclass(frozen=True)
class Mirrored(ScoredTask):
    kind = "mirrored"

    @classmethod
    def from_request(cls, request):
        return cls(load_model(request.model), request.first(list(find_images(request.data))))

    def fingerprint(self):
        return [path.name for path in self.examples]

    def stages(self):
        found = yield Stage(
            "predictions",
            self.fingerprint(),
            lambda index: self.image(self.examples[index]),
            self.predict,
            lambda index: [self.examples[index]],
        )
        return self.score({key: (r["class"], r["mirrored"]) for key, r in found.items()})

    def predict(self, images):
        pixels = self.loaded.batch(images)
        plain, flipped = (self.model(x).logits.argmax(-1) for x in (pixels, pixels.flip(-1)))
        pairs = zip(plain.tolist(), flipped.tolist())
        return [{"class": one, "mirrored": other} for one, other in pairs]
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with an installed package that announces the module above."""
    folder = tmp_path / "site"
    info = folder / "mirrors-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "mirrors.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mirrors\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[turbovlm_workbench]\nmine = mirrors\n")
    return folder


def turbovlm(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *sys.path])
    return subprocess.run(
        [sys.executable, "-m", "turbovlm", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_another_package_adds_a_task_and_a_metric(site: Path, tmp_path: Path) -> None:
    model, photos = build.vit_classifier(tmp_path / "vit"), build.noise(tmp_path / "photos", 6)
    out = tmp_path / "mirrored"
    done = turbovlm(site, "eval", "mirrored", "--model", str(model), "--data", str(photos),
                    "--r", "8", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "same class" in done.stdout
    records = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    share = sum(r["class"] == r["mirrored"] for r in records) / 6
    assert json.loads((out / "result.json").read_text())["metrics"] == {"same": share}

    # the metric stands beside those of the workbench; on a label that is the second guess it counts
    labels = tmp_path / "labels.csv"
    rows = [f"noise{n}.png,{n % 7}" for n in range(6)]
    labels.write_text("image,label\n" + "\n".join(rows) + "\n")
    words = ["eval", "classification", "--model", str(model), "--data", str(labels)]
    out = tmp_path / "first"
    done = turbovlm(site, *words, "--images", str(photos), "--out", str(out))
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    rows = [f"noise{n}.png,{record['classes'][1]}" for n, record in enumerate(records)]
    labels.write_text("image,label\n" + "\n".join(rows) + "\n")
    out = tmp_path / "second"
    done = turbovlm(site, *words, "--images", str(photos), "--out", str(out))
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "result.json").read_text())["metrics"]
    assert found == {"top1": 0.0, "top5": 1.0, "second": 1.0}


def test_an_extension_that_cannot_be_loaded_is_named(site: Path, tmp_path: Path) -> None:
    (site / "mirrors.py").write_text("import surely_not_installed\n")
    done = turbovlm(site, "eval", "mirrored", "--model", "x", "--data", str(tmp_path),
                    "--out", str(tmp_path / "out"))  # fmt: skip
    assert done.returncode == 2
    assert "the extension mine (mirrors) cannot be loaded: ModuleNotFoundError" in done.stderr


def test_every_task_of_eval_is_registered(tmp_path: Path) -> None:
    names = ["agreement", "captioning", "classification", "generation", "nlvr2", "retrieval", "vqa"]
    assert list(scored_tasks()) == names
    with pytest.raises(ConfigError, match="turbovlm eval generation --help"):
        build_task("generation", Request("x", tmp_path))


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ConfigError, match="there is a task vqa already"):
        register_task(VQA)
    known = metrics_for("vqa")
    with pytest.raises(ConfigError, match="vqa has a metric exact already"):
        register_metric("vqa", Measure("exact", "x", "x"))(lambda *_: MetricValues())
    assert metrics_for("vqa") == known
