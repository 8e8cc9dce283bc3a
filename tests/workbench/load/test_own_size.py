"""Models that take pictures in their own size or in tiles, against transformers one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image

import turbovlm
from tests.workbench import own_size
from tests.workbench.cli.test_commands import turbovlm_runs
from turbovlm import Merge, VisualTokens
from turbovlm_workbench.compare.bench import run_bench
from turbovlm_workbench.compare.plan import BenchPlan
from turbovlm_workbench.compare.samples import show_some
from turbovlm_workbench.data.images import ImageFolder
from turbovlm_workbench.load.by_task import load_answering
from turbovlm_workbench.load.own_size import Pictures
from turbovlm_workbench.load.prompted import (
    CAPTION,
    SHORT_ANSWER,
    PromptedAnswers,
    PromptedCaptioner,
)
from turbovlm_workbench.run.identity import model_digest
from turbovlm_workbench.tasks.registry import load_task

QUESTIONS = ["word3 word4 word5", "word9", "word1 word7 word2 word8", "word2"]
Build = Callable[[Path], Path]
MARKS: dict[Build, str] = {
    own_size.qwen25: f"{own_size.START} {own_size.IMAGE} {own_size.END}",
    own_size.llava_next: own_size.TILED,
}
each_model = pytest.mark.parametrize("build", MARKS, ids=lambda build: build.__name__)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several shapes, questions about them, and both models."""
    folder = tmp_path_factory.mktemp("place")
    paths = own_size.pictures(folder / "pictures")
    rows = [
        {"image": path.name, "question": question, "answers": ["word3"]}
        for path, question in zip(paths, QUESTIONS, strict=True)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for build in MARKS:
        build(folder / build.__name__)
    return folder


def photographs(place: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((place / "pictures").iterdir())]


def by_host(folder: Path, texts: list[str], images: list[Image.Image], tokens: int) -> list[str]:
    """As the documentation of transformers runs it, one at a time."""
    model: Any = hf.AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    said = []
    for text, image in zip(texts, images, strict=True):
        inputs = processor(images=image, text=text, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        said.append(processor.batch_decode(new, skip_special_tokens=True)[0].strip())
    return said


@each_model
def test_captions_of_a_batch_are_those_of_the_host(place: Path, build: Build) -> None:
    folder, images = place / build.__name__, photographs(place)
    task = load_task(str(folder))
    pixels = task.pixels(images)
    assert isinstance(pixels, Pictures)
    captions = task.outputs(task.model, pixels)
    text = f"USER: {MARKS[build]} {CAPTION} ASSISTANT:"
    assert captions == by_host(folder, [text] * 4, images, 32)
    assert len(set(captions)) > 1
    assert task.outputs(task.model, pixels[1:3]) == captions[1:3]
    for setting in (Merge(r=6), VisualTokens(keep=0.25)):
        with turbovlm.applied(task.model, setting) as run:
            assert task.outputs(task.model, pixels) != captions
            assert run.records()
    assert task.outputs(task.model, pixels) == captions


@each_model
def test_answers_of_a_batch_are_those_of_the_host(place: Path, build: Build) -> None:
    folder, images = place / build.__name__, photographs(place)
    loaded = load_answering(str(folder))
    assert isinstance(loaded, PromptedAnswers)
    one_by_one = [loaded.prepare.one(image) for image in images]
    with torch.inference_mode():
        answers = loaded.answer(loaded.batch(one_by_one), QUESTIONS)
    texts = [f"USER: {MARKS[build]} {SHORT_ANSWER.format(q)} ASSISTANT:" for q in QUESTIONS]
    assert answers == by_host(folder, texts, images, 16)


def test_the_encoder_alone_is_that_of_the_whole(place: Path) -> None:
    """What `analyze` and `show` run: the vision encoder on the inputs of the whole model."""
    task = load_task(str(place / "qwen25"))
    pixels = task.pixels(photographs(place))
    seen: list[torch.Tensor] = []
    tower = task.encoder(task.model)
    handle = tower.register_forward_hook(lambda _, __, out: seen.append(out.pooler_output))
    with torch.inference_mode():
        task.encode(task.model, pixels)
        task.call(task.model, pixels)
    handle.remove()
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_a_run_knows_another_processor(place: Path) -> None:
    loaded = load_answering(str(place / "qwen25"))
    before = model_digest({"prepare": loaded.prepare})
    assert before == model_digest({"prepare": load_answering(str(place / "qwen25")).prepare})
    image_processor: Any = loaded.prompts.processor.image_processor  # type: ignore[attr-defined]
    image_processor.image_mean = [0.1, 0.2, 0.3]
    assert model_digest({"prepare": loaded.prepare}) != before


def test_bench_runs_them(place: Path) -> None:
    task = load_task(str(place / "qwen25"))
    assert isinstance(task.loaded, PromptedCaptioner)
    short = replace(task.loaded, options={"max_new_tokens": 2})
    task = replace(task, loaded=short)
    folder = ImageFolder.open(place / "pictures")
    report = run_bench(task, folder, [(Merge(r=6),)], BenchPlan(batch=3, rounds=1))
    plain, merged = report.rows
    assert plain.quality["exact"] == 1
    assert merged.ideal > 1
    assert merged.quality["loss"] > 0
    assert merged.first_token is not None
    shown, _ = show_some(task, folder, report, 2)
    assert [sample.owner.shape for sample in shown] == [(6, 10), (12, 6)]
    assert [sample.tokens for sample in shown] == [60 - 18, 72 - 18]
    assert [sample.picture.shape[:2] for sample in shown] == [(48, 80), (96, 48)]


@each_model
def test_eval_runs_them(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], build: Build
) -> None:
    for name, more in {"plain": [], "fewer": ["--keep", 0.25]}.items():
        code, _, err = turbovlm_runs(
            capsys, "eval", "vqa", "--model", place / build.__name__, "--data",
            place / "questions.jsonl", "--images", place / "pictures", "--out", tmp_path / name,
            "--batch", 3, *more,
        )  # fmt: skip
        assert code == 0, err
    said = [
        [json.loads(line)["answer"] for line in path.read_text().splitlines()]
        for path in (tmp_path / name / "predictions.jsonl" for name in ("plain", "fewer"))
    ]
    assert len(said[0]) == len(QUESTIONS)
    assert said[0] != said[1]


def test_analyze_and_show_of_a_packed_tower(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = turbovlm_runs(
        capsys, "analyze", place / "qwen25", "--images", place / "pictures", "--r", 4, "--batch", 3,
        "--json", tmp_path / "a.json",
    )  # fmt: skip
    assert code == 0, err
    assert "Qwen2_5_VisionTransformerPretrainedModel, means over 4 samples" in out
    data = json.loads((tmp_path / "a.json").read_text())
    merged = [block["tokens"] for block in data["encoder"]["sides"]["turbo r=4"]]
    patches = sum(h * w for h, w in own_size.SHAPES) / 8**2 / 4
    assert merged == [patches - 4, patches - 8, patches - 12]
    assert data["language"]["visual"] == patches / 4
    some = sorted((place / "pictures").iterdir())[:2]
    code, out, err = turbovlm_runs(
        capsys, "show", place / "qwen25", *some, "--r", 4, "--out", tmp_path / "maps.png", "--json",
        tmp_path / "maps.json",
    )  # fmt: skip
    assert code == 0, err
    with Image.open(tmp_path / "maps.png") as drawn:
        assert drawn.height > drawn.width
    code, out, err = turbovlm_runs(
        capsys, "show", place / "llava_next", *some, "--out", tmp_path / "no.png"
    )
    assert code == 2
    assert "sees a picture in tiles" in err
    assert not (tmp_path / "no.png").exists()
