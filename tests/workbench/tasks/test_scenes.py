"""The built-in models on exported scenes: every task without a download, merged and not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.workbench.run.test_run import lines, plan
from turbovlm.config import Merge
from turbovlm_lab.export import export
from turbovlm_workbench.run.runner import run_task
from turbovlm_workbench.tasks.registry import build_task
from turbovlm_workbench.tasks.request import Request

# task, model, data, and a metric that the model gets nearly right
CASES = {
    "captioning": ("lab:captioner", "captions.json", "bleu4"),
    "retrieval": ("lab:retrieval", "captions.jsonl", "t2i_r1"),
    "vqa": ("lab:vqa", "vqa_questions.json", "accuracy"),
    "nlvr2": ("lab:nlvr", "nlvr2.jsonl", "accuracy"),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab") / "scenes"
    export(folder, 48)
    return folder


@pytest.mark.parametrize("task", CASES)
def test_scenes(scenes: Path, tmp_path: Path, task: str) -> None:
    if task == "captioning":
        pytest.importorskip("pycocoevalcap")
    model, data, metric = CASES[task]
    answers = scenes / "vqa_annotations.json" if task == "vqa" else None
    evaluation = build_task(task, Request(model, scenes / data, answers=answers, beams=1, top=10))
    found = {}
    for r in (0, 8):
        folder = tmp_path / str(r)
        done = run_task(evaluation, (Merge(r=r),) if r else (), plan(folder, batch=16))
        assert done is not None
        assert not done["broken"]
        assert done["metrics"][metric] > 0.75
        first = "images.jsonl" if task == "retrieval" else "predictions.jsonl"
        found[r] = torch.tensor(done["metrics"][metric]), lines(folder / first)
    # captions and answers may stay the same; embeddings and probabilities cannot
    if task in ("retrieval", "nlvr2"):
        assert found[0][1] != found[8][1], "merging changed nothing"
    assert found[8][0] > found[0][0] - 0.1
