"""lmms-eval runs its tasks on a merged model; needs `pip install 'turbovlm[lmms]'`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.workbench import build

pytest.importorskip("lmms_eval")
pytest.importorskip("decord")  # what its LLaVA imports

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function colours.images
doc_to_text: !function colours.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """
from PIL import Image
def images(doc): return [Image.open(doc["image"]).convert("RGB")]
def question(doc): return doc["question"]
"""


def answers(place: Path, out: str, kind: str, extra: str) -> list[str]:
    """What ``lmms-eval --model kind`` answered."""
    words: list[Any] = [sys.executable, "-m", "lmms_eval", "--model", kind, "--tasks", "colours"]
    words += ["--model_args", f"{extra}pretrained={place / 'llava'},dtype=float32,device_map=cpu"]
    words += ["--include_path", place / "tasks", "--output_path", place / out]
    words += ["--log_samples", "--batch_size", "1", "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub")}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (samples,) = (place / out).rglob("*samples_colours.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return [str(row["filtered_resps"]) for row in sorted(rows, key=lambda row: row["doc_id"])]


@pytest.mark.slow
def test_a_task_of_lmms_eval_runs_on_a_merged_model(tmp_path: Path) -> None:
    build.llava(tmp_path / "llava")
    photos = sorted(build.noise(tmp_path / "photos", 6).iterdir())
    rows = [{"image": str(p), "question": "word1 word2", "answer": "word3"} for p in photos]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.format(data=tmp_path / "data.json"))
    (tmp_path / "tasks" / "colours.py").write_text(FUNCTIONS)
    plain = answers(tmp_path, "plain", "llava_hf", "")
    same = answers(tmp_path, "same", "turbovlm", "base=llava_hf,r=0,")
    merged = answers(tmp_path, "merged", "turbovlm", "base=llava_hf,r=16,")
    fewer = answers(tmp_path, "fewer", "turbovlm", "base=llava_hf,keep=0.1,")
    assert len(plain) == 6
    assert same == plain
    assert merged != plain, "merging changed nothing"
    assert fewer != plain, "fewer visual tokens changed nothing"
