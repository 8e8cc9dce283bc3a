"""Models that answer a prompt, against transformers' own processor one image at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image

import turbovlm
from tests.workbench import build
from turbovlm import Merge, VisualTokens
from turbovlm.errors import ModelError
from turbovlm_workbench.data.images import ImageFolder
from turbovlm_workbench.load.by_task import load_answering
from turbovlm_workbench.load.models import load_model
from turbovlm_workbench.load.prompted import CAPTION, PromptedAnswers, PromptedCaptioner
from turbovlm_workbench.tasks.captioning import Captioning
from turbovlm_workbench.tasks.registry import load_task

QUESTIONS = ["word3 word4 word5", "word9", "word1 word7 word2 word8 word20 word11"]


@pytest.fixture
def images(tmp_path: Path) -> list[Image.Image]:
    folder = ImageFolder.open(build.noise(tmp_path / "noise", 3))
    return [folder.image(index) for index in range(3)]


def by_host(model: Any, processor: Any, text: str, image: Image.Image, tokens: int) -> str:
    """As the documentation of transformers runs it."""
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    new = ids[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("chat", [build.CHAT, None], ids=["chat", "plain"])
def test_captions_are_those_of_the_host(
    tmp_path: Path, images: list[Image.Image], chat: str | None
) -> None:
    folder = build.llava(tmp_path / "llava", chat)
    task = load_task(str(folder))
    assert isinstance(task, Captioning)
    assert isinstance(task.loaded, PromptedCaptioner)
    captions = task.outputs(task.model, task.pixels(images))
    text = f"USER: <image> {CAPTION} ASSISTANT:" if chat else f"<image>\n{CAPTION}"
    model = hf.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    assert captions == [by_host(model, processor, text, image, 32) for image in images]
    assert len(set(captions)) > 1
    first = task.first_token()
    assert first is not None
    written = first.outputs(task.model, task.pixels(images))
    assert [caption.split()[:1] for caption in captions] == [word.split() for word in written]


def test_answers_are_those_of_the_host(tmp_path: Path, images: list[Image.Image]) -> None:
    """Questions of different lengths in one batch, against one by one."""
    folder = build.llava(tmp_path / "llava")
    answerer = load_answering(str(folder))
    assert isinstance(answerer, PromptedAnswers)
    pixels = answerer.pixels(images)
    with torch.inference_mode():
        answers = answerer.answer(pixels, QUESTIONS)
    model = hf.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    asked = "USER: <image> {}\nAnswer the question using a single word or phrase. ASSISTANT:"
    expected = [
        by_host(model, processor, asked.format(question), image, 16)
        for image, question in zip(images, QUESTIONS, strict=True)
    ]
    assert answers == expected
    with torch.inference_mode():
        for settings in ((VisualTokens(keep=0.1),), (Merge(r=8), VisualTokens(keep=0.1))):
            with turbovlm.applied(answerer.model, *settings) as run:
                fewer = answerer.answer(pixels, QUESTIONS)
            assert [len(image.kept) for image in run.visual.images] == [6, 6, 6]
            assert fewer != answers
        assert answerer.answer(pixels, QUESTIONS) == answers


def test_beams_are_one_unless_asked_for(tmp_path: Path) -> None:
    folder = str(build.llava(tmp_path / "llava"))
    found = load_model(folder)
    assert isinstance(found, PromptedCaptioner)
    assert found.options["num_beams"] == 1
    found = load_model(folder, beams=4)
    assert isinstance(found, PromptedCaptioner)
    assert found.options["num_beams"] == 4


def test_pictures_of_other_shapes_that_a_model_is_not_told_of(tmp_path: Path) -> None:
    folder = build.llava(tmp_path / "llava")
    uneven = hf.CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    uneven.save_pretrained(folder)
    processor = hf.AutoProcessor.from_pretrained(folder)
    processor.image_processor = uneven
    processor.save_pretrained(folder)
    with pytest.raises(ModelError, match="gets pictures of different shapes and is not told which"):
        load_model(str(folder))


def test_a_folder_without_its_processor(tmp_path: Path) -> None:
    folder = build.llava(tmp_path / "llava")
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="is the folder complete"):
        load_model(str(folder))
