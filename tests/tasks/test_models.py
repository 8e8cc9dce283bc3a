from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.tasks import build
from turbovlm.errors import (
    ConfigError,
    InputError,
    MissingExtra,
    ModelError,
    UnknownArchitecture,
)
from turbovlm.tasks.base import Task
from turbovlm.tasks.caption import Caption
from turbovlm.tasks.classify import Classify
from turbovlm.tasks.embed import Embed
from turbovlm.tasks.images import ImageFolder
from turbovlm.tasks.models import load, with_labels

DATA = Path(
    os.environ.get("TURBOVLM_DATA", Path(__file__).resolve().parents[2].parent / "shared/data")
)


def pictures(folder: Path) -> list[Image.Image]:
    images = ImageFolder.open(build.photos(folder, 3))
    return [images.image(index) for index in range(3)]


@pytest.mark.parametrize(
    ("make", "kind", "built"),
    [
        (build.vit_classifier, Classify, "ViTForImageClassification"),
        (build.vit_backbone, Embed, "ViTModel"),
        (build.deit_backbone, Embed, "DeiTModel"),
        (build.dinov2_backbone, Embed, "Dinov2Model"),
        (build.clip, Embed, "CLIPVisionModelWithProjection"),
        (build.siglip, Embed, "SiglipVisionModel"),
        (build.blip, Caption, "BlipForConditionalGeneration"),
        (build.blip2, Caption, "Blip2ForConditionalGeneration"),
    ],
)
def test_a_folder_becomes_a_task(
    tmp_path: Path, make: Callable[[Path], Path], kind: type[Task[Any]], built: str
) -> None:
    task = load(str(make(tmp_path / "model")))
    assert type(task) is kind
    assert type(task.model).__name__ == built
    assert not task.model.training
    pixels = task.pixels(pictures(tmp_path / "photos"))
    assert pixels.shape == (3, 3, 32, 32)
    output = task.outputs(task.model, pixels)
    assert len(output) == 3
    assert len(task.words(output)) == 3
    meter = task.meter()
    meter.update(output, output, 0)
    assert meter.result()[task.agreement.key] == pytest.approx(1)


def test_a_hub_classifier_gives_its_own_logits(tmp_path: Path) -> None:
    folder = build.vit_classifier(tmp_path / "model")
    images = pictures(tmp_path / "photos")
    task = load(str(folder))
    inputs = hf.AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
    with torch.no_grad():
        expected = hf.ViTForImageClassification.from_pretrained(folder)(**inputs).logits
    got = task.outputs(task.model, task.pixels(images))
    assert torch.equal(got, expected)
    assert got.std() > 0.01


def test_captions_are_those_of_generate(tmp_path: Path) -> None:
    folder = build.blip(tmp_path / "model")
    images = pictures(tmp_path / "photos")
    task = load(str(folder), beams=2)
    processor: Any = hf.BlipProcessor.from_pretrained(folder)
    model = hf.BlipForConditionalGeneration.from_pretrained(folder).eval()
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    ids = model.generate(pixel_values=pixels, num_beams=2, max_new_tokens=20, do_sample=False)
    expected = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    assert task.outputs(task.model, pixels) == expected
    assert any(expected)


def test_timm_with_local_weights(tmp_path: Path) -> None:
    path = build.timm_weights(tmp_path / "tiny.safetensors")
    task = load(f"timm:{build.TINY}", path)
    assert isinstance(task, Classify)
    pixels = task.pixels(pictures(tmp_path / "photos"))
    assert pixels.shape == (3, 3, 160, 160)
    model = timm.create_model(build.TINY).eval()
    model.load_state_dict(load_file(path))
    assert torch.equal(task.outputs(task.model, pixels), model(pixels).detach())


def test_a_checkpoint_with_other_classes_and_wrappings(tmp_path: Path) -> None:
    state = build.wild(timm.create_model(build.TINY, num_classes=7)).state_dict()
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "tuned.pth")
    task = load(f"timm:{build.TINY}", tmp_path / "tuned.pth")
    assert task.outputs(task.model, torch.zeros(1, 3, 160, 160)).shape == (1, 7)


def test_the_picture_shown_is_the_picture_seen(tmp_path: Path) -> None:
    task = load(f"timm:{build.TINY}", build.timm_weights(tmp_path / "tiny.safetensors"))
    red = Image.new("RGB", (200, 200), (220, 30, 60))
    assert task.prepare.show(task.pixels([red])[0])[80, 80].tolist() == [220, 30, 60]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.bias"), r"1 keys are missing \(norm\.bias, \.\.\.\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 are unknown \(extra, \.\.\.\)"),
        (
            lambda s: s.update({"norm.bias": torch.zeros(3)}),
            r"1 have another shape \(norm\.bias is \(3,\) instead of \(64,\)\)",
        ),
    ],
)
def test_weights_that_do_not_fit(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    state = timm.create_model(build.TINY).state_dict()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=message):
        load(f"timm:{build.TINY}", tmp_path / "w.safetensors")


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    name = f"timm:{build.TINY}"
    with pytest.raises(ModelError, match=r"no weights file .*gone\.pth"):
        load(name, tmp_path / "gone.pth")
    for path in (tmp_path / "noise.safetensors", tmp_path / "noise.pth"):
        path.write_bytes(b"this is no checkpoint at all")
        with pytest.raises(ModelError, match="cannot read weights from"):
            load(name, path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds no table of tensors"):
        load(name, tmp_path / "list.pth")


class Evil:
    """A pickle that would create a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"x": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="cannot read weights"):
        load(f"timm:{build.TINY}", tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model 'vit_tniy_patch16_224': did you mean vit_tiny"):
        load("timm:vit_tniy_patch16_224")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is the folder complete"):
        load(str(tmp_path / "empty"))


def test_a_folder_without_its_processor(tmp_path: Path) -> None:
    folder = build.vit_classifier(tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot load ImageProcessor of"):
        load(str(folder))


def test_an_architecture_that_bench_cannot_run(tmp_path: Path) -> None:
    hf.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    with pytest.raises(UnknownArchitecture, match=r"is a BertModel \(bert\).*ViTModel|turbovlm"):
        load(str(tmp_path))


def test_no_weight_is_left_random(tmp_path: Path) -> None:
    folder = build.vit_classifier(tmp_path / "model")
    config = hf.AutoConfig.from_pretrained(folder)
    config.architectures = ["ViTModel"]
    config.save_pretrained(folder)
    images = pictures(tmp_path / "photos")
    first, second = load(str(folder)), load(str(folder))  # its pooling layer was never saved
    pixels = first.pixels(images)
    assert torch.equal(first.outputs(first.model, pixels), second.outputs(second.model, pixels))
    state = hf.ViTModel.from_pretrained(folder).state_dict()
    state.pop("layernorm.bias")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"lacks 1 weights of ViTModel \(layernorm\.bias, \.\.\.\)"
    ):
        load(str(folder))


def test_arguments_that_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--weights goes with timm:NAME"):
        load("some/model", tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="--beams must be at least 1"):
        load("some/model", beams=0)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("timm:x", "timm", "timm"), ("a/b", "transformers", "hf"), ("a/b", "torchvision", "hf")],
)
def test_a_missing_extra_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module: None if module == package else real(module)
    )
    with pytest.raises(MissingExtra, match=rf"{package}.*pip install 'turbovlm\[{extra}\]'"):
        load(name)


def test_labels_are_for_classifiers(tmp_path: Path) -> None:
    embedder = load(str(build.vit_backbone(tmp_path / "model")))
    assert with_labels(embedder, None) is embedder
    with pytest.raises(ConfigError, match="--labels is for classifiers"):
        with_labels(embedder, (1, 2))
    classifier = load(str(build.vit_classifier(tmp_path / "classes")))
    assert next(m.key for m in with_labels(classifier, (0, 6)).measures()) == "accuracy"
    with pytest.raises(InputError, match="the model has 7 classes"):
        with_labels(classifier, (0, 7))


@pytest.mark.data
def test_real_weights_know_real_photographs() -> None:
    if not DATA.is_dir():
        pytest.skip("no real weights here: set TURBOVLM_DATA")
    weights = DATA / "vit_tiny_augreg/vit_tiny_patch16_224.safetensors"
    images = ImageFolder.open(DATA / "photos500", "labels.csv")
    task = with_labels(load("timm:vit_tiny_patch16_224", weights), images.labels)
    meter = task.meter()
    number = 100
    output = task.outputs(task.model, task.pixels([images.image(i) for i in range(number)]))
    meter.update(output, output, 0)
    # 89.2 % on all 500 with the model's own preprocessing; three standard errors of 100 images
    assert meter.result()["accuracy"] == pytest.approx(0.892, abs=0.093)
