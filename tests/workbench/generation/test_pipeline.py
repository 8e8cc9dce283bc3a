"""Pipelines by name: what loads, and what is refused before anything is loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workbench import build
from tests.workbench.generation.make import SIDE, stable_diffusion
from turbovlm.errors import MissingExtra, ModelError
from turbovlm_workbench.generation.draw import native_size
from turbovlm_workbench.generation.pipeline import check_pipeline, denoiser, load_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("models") / "sd")


def test_a_folder_in_the_format_and_for_the_task_that_are_asked_for(folder: Path) -> None:
    text = load_pipeline(str(folder))
    assert type(text).__name__ == "StableDiffusionPipeline"
    assert denoiser(text) is text.unet
    assert native_size(text) == SIDE
    image = load_pipeline(str(folder), torch.bfloat16, image=True)
    assert type(image).__name__ == "StableDiffusionImg2ImgPipeline"
    parts = (image.unet, image.vae, image.text_encoder)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lab:captioner", "lab:captioner draws nothing: lab:painter does"),
        ("{vit}", "holds no pipeline of diffusers"),
        ("{vit}/config.json", "is a file: give the folder"),
        ("{odd}", "names no pipeline"),
        ("{torn}", "holds no pipeline of diffusers"),
    ],
)
def test_what_is_no_pipeline_is_refused_unloaded(tmp_path: Path, name: str, message: str) -> None:
    build.vit_classifier(tmp_path / "vit")
    for kind, text in (("odd", "{}"), ("torn", "{")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "model_index.json").write_text(text)
    places = {kind: tmp_path / kind for kind in ("vit", "odd", "torn")}
    with pytest.raises(ModelError, match=message):
        check_pipeline(name.format(**places))


def test_a_folder_with_a_part_missing_says_which(folder: Path, tmp_path: Path) -> None:
    stable_diffusion(tmp_path / "sd")
    (tmp_path / "sd" / "unet" / "config.json").unlink()
    with pytest.raises(ModelError, match="as a text-to-image pipeline"):
        load_pipeline(str(tmp_path / "sd"))


def test_a_pipeline_without_a_denoiser() -> None:
    class Empty:
        pass

    with pytest.raises(ModelError, match="Empty has neither a unet nor a transformer"):
        denoiser(Empty())


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_a_missing_extra_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real: Any = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    with pytest.raises(MissingExtra, match=rf"{package}.*pip install 'turbovlm\[diffusion\]'"):
        load_pipeline("lab:painter")
