"""What a name leads to, and what is said where it leads to nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image

from tests.workbench import build
from tests.workbench.load.test_answering import blip as blip_vqa
from tests.workbench.load.test_answering import blip2 as blip2_writer
from tests.workbench.load.test_answering import nlvr
from tests.workbench.load.test_matching import blip, dual
from turbovlm.errors import MissingExtra, ModelError
from turbovlm_lab.heads import HEADS
from turbovlm_workbench.load.by_task import load_answering, load_matching, load_statements
from turbovlm_workbench.load.image_text import ImageTextModel

LOADERS: dict[str, Callable[[str], ImageTextModel]] = {
    "vqa": load_answering,
    "retrieval": load_matching,
    "nlvr": load_statements,
}


def test_preprocessing_is_that_of_the_folder(tmp_path: Path) -> None:
    matcher = load_matching(str(blip(tmp_path)))
    photo = Image.effect_noise((50, 40), 90).convert("RGB")
    expected = hf.AutoImageProcessor.from_pretrained(tmp_path)(photo, return_tensors="pt")
    assert torch.equal(matcher.prepare([photo]), expected["pixel_values"])


def test_a_checkpoint_in_half_precision_is_loaded_in_float32(tmp_path: Path) -> None:
    folder = blip(tmp_path)
    hf.BlipForImageTextRetrieval.from_pretrained(folder).half().save_pretrained(folder)
    weights = load_matching(str(folder)).model.state_dict().values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(
    ("load", "make", "message"),
    [
        (
            load_matching,
            blip_vqa,
            r"is a BlipForQuestionAnswering, .*image-text retrieval: give lab:"
            r"retrieval, open_clip:NAME, or a folder or hub id of a BlipForImageTextRetrieval, B",
        ),
        (
            load_answering,
            blip,
            r"is a BlipForImageTextRetrieval, .*question answering: give lab:vqa, "
            r"lab:vlm, or .*BlipForQuestionAnswering, Blip2ForConditionalGeneration, MiniGPTv2",
        ),
        (load_answering, build.blip, r"is a BlipForConditionalGeneration, which is not for visual"),
        (
            load_statements,
            lambda p: dual(p, "clip"),
            r"is a CLIPModel, .*statements .*of a BlipForNlvr",
        ),
        (load_matching, build.vit_classifier, r"is a ViTForImageClassification, which is not for"),
    ],
)
def test_a_model_for_something_else(
    tmp_path: Path,
    load: Callable[[str], ImageTextModel],
    make: Callable[[Path], Path],
    message: str,
) -> None:
    with pytest.raises(ModelError, match=message):
        load(str(make(tmp_path)))


def test_names_of_other_libraries(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"timm:x is a model of timm, which is not for image-text"):
        load_matching("timm:x")
    with pytest.raises(ModelError, match=r"open_clip:ViT-B-32 is a model of open_clip, which is"):
        load_answering("open_clip:ViT-B-32")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"cannot load Config of .*is the folder complete"):
        load_statements(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("load", "make"),
    [
        (load_matching, blip),  # transformers makes up a tokenizer of special tokens alone
        (load_matching, lambda p: dual(p, "clip")),
        (load_matching, lambda p: dual(p, "siglip")),  # transformers raises
        (load_answering, blip_vqa),
        (load_answering, lambda p: blip2_writer(p, True)),
        (load_statements, nlvr),
    ],
)
def test_a_folder_without_its_tokenizer(
    tmp_path: Path, load: Callable[[str], ImageTextModel], make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer.*: save the tokenizer that the model"):
        load(str(folder))


def test_a_folder_without_its_image_processor(tmp_path: Path) -> None:
    folder = blip(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot load ImageProcessor of"):
        load_matching(str(folder))


@pytest.mark.parametrize("package", ["transformers", "torchvision"])
def test_a_missing_library(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module: None if module == package else real(module)
    )
    with pytest.raises(MissingExtra, match=rf"{package}.*pip install 'turbovlm\[hf\]'"):
        load_answering("a/b")


@pytest.mark.parametrize("head", HEADS)
def test_the_heads_of_the_lab(head: str) -> None:
    face = LOADERS[head](f"lab:{head}")
    assert face.name == f"lab:{head}"
    assert not face.model.training
    photo = Image.effect_noise((224, 224), 90).convert("RGB")
    pixels = face.prepare([photo])
    assert pixels.shape == (1, 3, 224, 224)
    other: Any = next(load for name, load in LOADERS.items() if name != head)
    with pytest.raises(ModelError, match=rf"lab:{head} is a Blip.*, which is not for"):
        other(f"lab:{head}")
