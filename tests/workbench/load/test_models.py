from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip.factory
import open_clip.pretrained
import pytest
import timm
import torch
import torchvision
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity

import turbovlm
from tests.workbench import build
from turbovlm.errors import (
    ConfigError,
    InputError,
    MissingExtra,
    ModelError,
    UnknownArchitecture,
)
from turbovlm_workbench.cli import main
from turbovlm_workbench.data.images import ImageFolder
from turbovlm_workbench.load.libraries import vit_size
from turbovlm_workbench.load.prepare import torchvision_prepare
from turbovlm_workbench.metrics.measure import summarize
from turbovlm_workbench.tasks.captioning import Captioning
from turbovlm_workbench.tasks.classification import Classification
from turbovlm_workbench.tasks.embedding import Embedding
from turbovlm_workbench.tasks.image import ImageTask
from turbovlm_workbench.tasks.registry import load_task

DATA = Path(os.environ.get("TURBOVLM_DATA", Path(__file__).resolve().parents[4] / "shared/data"))


def pictures(folder: Path) -> list[Image.Image]:
    images = ImageFolder.open(build.photos(folder, 3))
    return [images.image(index) for index in range(3)]


@pytest.mark.parametrize(
    ("make", "kind", "built"),
    [
        (build.vit_classifier, Classification, "ViTForImageClassification"),
        (build.vit_backbone, Embedding, "ViTModel"),
        (build.deit_backbone, Embedding, "DeiTModel"),
        (build.dinov2_backbone, Embedding, "Dinov2Model"),
        (build.clip, Embedding, "CLIPVisionModelWithProjection"),
        (build.siglip, Embedding, "SiglipVisionModel"),
        (build.blip, Captioning, "BlipForConditionalGeneration"),
        (build.blip2, Captioning, "Blip2ForConditionalGeneration"),
        (build.encoder_decoder, Captioning, "VisionEncoderDecoderModel"),
    ],
)
def test_a_folder_becomes_a_task(
    tmp_path: Path, make: Callable[[Path], Path], kind: type[ImageTask[Any]], built: str
) -> None:
    task = load_task(str(make(tmp_path / "model")))
    assert type(task) is kind
    assert type(task.model).__name__ == built
    assert not task.model.training
    pixels = task.pixels(pictures(tmp_path / "photos"))
    assert pixels.shape == (3, 3, 32, 32)
    output = task.outputs(task.model, pixels)
    assert len(output) == 3
    assert len(task.words(output)) == 3
    scores = summarize(task.comparisons, task.compare(output, output, 0))
    assert scores[task.agreement.key] == pytest.approx(1)


def test_a_hub_classifier_gives_its_own_logits(tmp_path: Path) -> None:
    folder = build.vit_classifier(tmp_path / "model")
    images = pictures(tmp_path / "photos")
    task = load_task(str(folder))
    inputs = hf.AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
    with torch.no_grad():
        expected = hf.ViTForImageClassification.from_pretrained(folder)(**inputs).logits
    got = task.outputs(task.model, task.pixels(images))
    assert torch.equal(got, expected)
    assert got.std() > 0.01


def embedding(kind: str, model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(B, C): projected where there is a projection, else pooled, else cls, else averaged."""
    if hasattr(model, "get_image_features"):
        return model.get_image_features(pixels).pooler_output
    output = model(pixels)
    if output.get("pooler_output") is not None:
        return output.pooler_output
    if kind in ("siglip_vision_model", "aimv2_vision_model"):
        return output.last_hidden_state.mean(1)
    return output.last_hidden_state[:, 0]


@pytest.mark.parametrize("kind", build.TOWERS)
def test_image_encoders_embed(tmp_path: Path, kind: str) -> None:
    folder = build.tower(tmp_path / "model", kind)
    task = load_task(str(folder))
    assert isinstance(task, Embedding)
    assert not task.model.training
    assert task.pixels(pictures(tmp_path / "photos")).shape == (3, 3, 32, 32)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = task.outputs(task.model, pixels)
    with torch.inference_mode():
        model = type(build.TOWERS[kind]()).from_pretrained(folder)
        assert torch.equal(before, embedding(kind, model, pixels))
    with turbovlm.applied(task.model, turbovlm.Merge(r=12)) as run:
        after = task.outputs(task.model, pixels)
    assert run.trace.start > run.trace.tokens[0]
    assert cosine_similarity(before, after).max() < 0.9999
    assert torch.equal(before, task.outputs(task.model, pixels))


def test_a_classifier_with_a_teacher(tmp_path: Path) -> None:
    """DeiT's published checkpoints are of a class whose name ends otherwise."""
    config = hf.DeiTConfig(**build.SIZES, id2label={index: f"kind {index}" for index in range(7)})
    build.wild(hf.DeiTForImageClassificationWithTeacher(config)).save_pretrained(tmp_path)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    task = load_task(str(tmp_path))
    assert isinstance(task, Classification)
    assert task.outputs(task.model, torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_captions_are_those_of_generate(tmp_path: Path) -> None:
    folder = build.blip(tmp_path / "model")
    images = pictures(tmp_path / "photos")
    task = load_task(str(folder), beams=2)
    processor: Any = hf.BlipProcessor.from_pretrained(folder)
    model = hf.BlipForConditionalGeneration.from_pretrained(folder).eval()
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    ids = model.generate(pixel_values=pixels, num_beams=2, max_new_tokens=20, do_sample=False)
    expected = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    assert task.outputs(task.model, pixels) == expected
    assert any(expected)


def test_timm_with_local_weights(tmp_path: Path) -> None:
    path = build.timm_weights(tmp_path / "tiny.safetensors")
    task = load_task(f"timm:{build.TINY}", path)
    assert isinstance(task, Classification)
    pixels = task.pixels(pictures(tmp_path / "photos"))
    assert pixels.shape == (3, 3, 160, 160)
    model = timm.create_model(build.TINY).eval()
    model.load_state_dict(load_file(path))
    assert torch.equal(task.outputs(task.model, pixels), model(pixels).detach())


def test_a_checkpoint_with_other_classes_and_wrappings(tmp_path: Path) -> None:
    state = build.wild(timm.create_model(build.TINY, num_classes=7)).state_dict()
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "tuned.pth")
    task = load_task(f"timm:{build.TINY}", tmp_path / "tuned.pth")
    assert task.outputs(task.model, torch.zeros(1, 3, 160, 160)).shape == (1, 7)


@pytest.fixture
def squeezenet() -> dict[str, torch.Tensor]:
    """The weights of a classifier of 5 MB with 5 classes."""
    model = torchvision.models.squeezenet1_1(num_classes=5)
    return build.wild(model).state_dict()


def test_torchvision_with_local_weights(tmp_path: Path, squeezenet: dict[str, Any]) -> None:
    save_file(squeezenet, tmp_path / "tuned.safetensors")
    task = load_task("torchvision:squeezenet1_1", tmp_path / "tuned.safetensors")
    assert isinstance(task, Classification)
    assert (task.name, task.model.training) == ("torchvision:squeezenet1_1", False)
    pixels = task.pixels(pictures(tmp_path / "photos"))
    model = torchvision.models.squeezenet1_1(num_classes=5).eval()
    model.load_state_dict(squeezenet)
    assert torch.equal(task.outputs(task.model, pixels), model(pixels).detach())
    assert pixels.shape == (3, 3, 224, 224)
    assert next(m.key for m in task.with_labels((0, 4)).comparisons) == "accuracy"
    with pytest.raises(InputError, match="the model has 5 classes"):
        task.with_labels((0, 5))
    with pytest.raises(UnknownArchitecture, match="no row describes SqueezeNet"):
        turbovlm.apply(task.model, turbovlm.Merge(r=4))


def test_torchvision_with_published_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From torchvision's own cache, where a download would leave them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights: Any = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    cached = tmp_path / "hub" / "checkpoints" / Path(weights.url).name
    cached.parent.mkdir(parents=True)
    model = build.wild(torchvision.models.squeezenet1_1())
    torch.save(model.state_dict(), cached)
    task = load_task("torchvision:squeezenet1_1")
    images = pictures(tmp_path / "photos")
    pixels = torch.stack([weights.transforms()(image) for image in images])
    assert torch.equal(task.pixels(images), pixels)
    assert torch.equal(task.outputs(task.model, pixels), model(pixels).detach())
    cached.write_bytes(b"half a download")
    with pytest.raises(
        ModelError, match=r"weights of torchvision:squeezenet1_1 .*local file with --weights"
    ):
        load_task("torchvision:squeezenet1_1")


def test_the_image_size_follows_from_the_file(squeezenet: dict[str, Any]) -> None:
    assert vit_size(build.torchvision_vit().state_dict()) == 64
    with torch.device("meta"):
        swag = torchvision.models.vit_h_14(image_size=518).state_dict()
    assert vit_size(swag) == 518
    assert vit_size(squeezenet) is None


def test_another_transformer_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(build.torchvision_vit(num_classes=3).state_dict(), path)
    with pytest.raises(ModelError, match=r"w\.pth does not fit torchvision:vit_b_16: 120 keys"):
        load_task("torchvision:vit_b_16", path)
    with pytest.raises(ModelError, match=r"does not fit torchvision:squeezenet1_1 \(.*image_size"):
        load_task("torchvision:squeezenet1_1", path)


def test_preprocessing_of_torchvision_files(tmp_path: Path) -> None:
    """Published files by their name, others by the size of the image."""
    published: Any = torchvision.models.ViT_B_16_Weights
    plain, swag, linear = published
    images = [Image.open(path) for path in build.photos(tmp_path, 2, 300).rglob("*.jpg")]

    def same(weights: Any, side: int, file: str | None) -> bool:
        expected = torch.stack([weights.transforms()(image) for image in images])
        got = torchvision_prepare("vit_b_16", side, None if file is None else Path(file))(images)
        return got.shape == expected.shape and torch.equal(got, expected)

    assert same(plain, 224, None)
    assert same(plain, 224, "tuned.pth")
    assert same(swag, 384, "tuned.pth")
    assert same(linear, 224, f"some/where/{Path(linear.url).name}")
    assert not same(linear, 224, "tuned.pth")
    assert torchvision_prepare("vit_b_16", 64, Path("x.pth"))(images).shape == (2, 3, 64, 64)


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip knows tiny-clip and tiny-coca for the length of a test."""
    factory = open_clip.factory
    for name in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
        monkeypatch.setattr(factory, name, getattr(factory, name).copy())
    open_clip.add_model_config(build.open_clip_configs(tmp_path / "configs"))


@pytest.mark.usefixtures("clips")
@pytest.mark.parametrize("name", ["tiny-clip", "tiny-coca"])
def test_open_clip_with_local_weights(tmp_path: Path, name: str) -> None:
    path = build.open_clip_weights(tmp_path / "w.safetensors", name)
    task = load_task(f"open_clip:{name}", path)
    assert isinstance(task, Embedding)
    assert (task.name, task.model.training) == (f"open_clip:{name}", False)
    model: Any
    transform: Any
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=str(path))
    images = pictures(tmp_path / "photos")
    pixels = torch.stack([transform(image) for image in images])
    assert torch.equal(task.pixels(images), pixels)
    got = task.outputs(task.model, pixels)
    assert got.shape == (3, 16)
    with torch.inference_mode():
        assert torch.equal(got, model.eval().encode_image(pixels, normalize=False))


@pytest.mark.usefixtures("clips")
def test_open_clip_with_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tag with the activation of the architecture, and its preprocessing."""
    path = build.open_clip_weights(tmp_path / "w.safetensors", "tiny-clip")
    known = open_clip.pretrained._PRETRAINED
    with pytest.raises(ModelError, match=r"knows no published weights of tiny-clip: .*--weights"):
        load_task("open_clip:tiny-clip")
    other = {"file": str(tmp_path / "gone"), "quick_gelu": True}
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    monkeypatch.setitem(known, "tiny-clip", {"other": other})
    with pytest.raises(ModelError, match=r"another activation .*open_clip:tiny-clip-quickgelu"):
        load_task("open_clip:tiny-clip")
    ours = {"file": str(path), "mean": mean, "std": std, "resize_mode": "squash"}
    monkeypatch.setitem(known, "tiny-clip", {"other": other, "ours": ours})
    task = load_task("open_clip:tiny-clip")
    assert (task.prepare.mean, task.prepare.std) == (mean, std)
    pixels = torch.randn(1, 3, 32, 32)
    same = load_task("open_clip:tiny-clip", path)
    assert torch.equal(task.outputs(task.model, pixels), same.outputs(same.model, pixels))
    monkeypatch.setitem(known, "tiny-clip", {"ours": {"file": str(tmp_path / "gone")}})
    with pytest.raises(ModelError, match=r"cannot get the weights of open_clip:tiny-clip \(.*gone"):
        load_task("open_clip:tiny-clip")


@pytest.mark.usefixtures("clips")
def test_a_file_is_preprocessed_as_the_published_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build.open_clip_weights(tmp_path / "w.safetensors", "tiny-clip")
    half = {"file": "gone", "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", {"siglip": half})
    wide = Image.new("RGB", (90, 30), (255, 0, 0))
    wide.paste((0, 0, 255), (0, 0, 20, 30))  # a centre crop would not see it
    pixels = load_task("open_clip:tiny-clip", path).pixels([wide])
    assert pixels[0, :, 16, 0].tolist() == [-1, -1, 1]
    assert pixels[0, :, 16, 31].tolist() == [1, -1, -1]


@pytest.mark.usefixtures("clips")
def test_open_clip_weights_that_do_not_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError, match=r"no weights file .*gone\.pth"):
        load_task("open_clip:tiny-clip", tmp_path / "gone.pth")
    path = build.open_clip_weights(tmp_path / "w.safetensors", "tiny-clip")
    caplog.clear()
    state = load_file(path)
    del state["visual.proj"]
    save_file(state, path)
    with pytest.raises(ModelError, match=r'does not fit .*Missing key.*"visual\.proj".*give the'):
        load_task("open_clip:tiny-clip", path)
    torch.save({"x": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match=r"evil\.pth does not fit"):
        load_task("open_clip:tiny-clip", tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    assert caplog.records == []


@pytest.mark.usefixtures("clips")
def test_bench_of_an_open_clip_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = build.open_clip_weights(tmp_path / "w.safetensors", "tiny-clip")
    build.noise(tmp_path / "photos", 3)
    argv = ["bench", "open_clip:tiny-clip", "--weights", path, "--images", tmp_path / "photos",
            "--r", 8, 14, "--batch", 3, "--rounds", 2, "--json", tmp_path / "out.json", "--html",
            tmp_path / "out.html"]  # fmt: skip
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert leaving.value.code == 0, err
    assert "cosine" in out.splitlines()[0]
    data = json.loads((tmp_path / "out.json").read_text())
    rows = {row["name"]: row for row in data["rows"]}
    assert list(rows) == ["unmerged", "turbo r=8", "turbo r=14"]
    cosines = [row["quality"]["cosine"] for row in rows.values()]
    assert cosines[0] == pytest.approx(1)
    assert 0 < cosines[2] < cosines[1] < 0.9999
    assert rows["turbo r=14"]["gflops"] < rows["turbo r=8"]["gflops"] < rows["unmerged"]["gflops"]
    assert (tmp_path / "out.html").read_text().count("<img src=") == 6


def test_the_picture_shown_is_the_picture_seen(tmp_path: Path) -> None:
    task = load_task(f"timm:{build.TINY}", build.timm_weights(tmp_path / "tiny.safetensors"))
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
        load_task(f"timm:{build.TINY}", tmp_path / "w.safetensors")


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    name = f"timm:{build.TINY}"
    with pytest.raises(ModelError, match=r"no weights file .*gone\.pth"):
        load_task(name, tmp_path / "gone.pth")
    for path in (tmp_path / "noise.safetensors", tmp_path / "noise.pth"):
        path.write_bytes(b"this is no checkpoint at all")
        with pytest.raises(ModelError, match="cannot read weights from"):
            load_task(name, path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds no table of tensors"):
        load_task(name, tmp_path / "list.pth")


class Evil:
    """A pickle that would create a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"x": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="cannot read weights"):
        load_task(f"timm:{build.TINY}", tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model 'vit_tniy_patch16_224': did you mean vit_tiny"):
        load_task("timm:vit_tniy_patch16_224")
    with pytest.raises(ModelError, match=r"no model 'vit_b_61': did you mean vit_b_16"):
        load_task("torchvision:vit_b_61")
    with pytest.raises(ModelError, match=r"no model 'ViT-B/32': did you mean ViT-B-32"):
        load_task("open_clip:ViT-B/32")
    with pytest.raises(ModelError, match=r"'keras:vit' .*torchvision:NAME or open_clip:NAME"):
        load_task("keras:vit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is the folder complete"):
        load_task(str(tmp_path / "empty"))


def test_a_folder_without_its_processor(tmp_path: Path) -> None:
    folder = build.vit_classifier(tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot load ImageProcessor of"):
        load_task(str(folder))


def test_an_architecture_that_bench_cannot_run(tmp_path: Path) -> None:
    hf.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    with pytest.raises(UnknownArchitecture, match=r"is a BertModel \(bert\).*ViTModel|turbovlm"):
        load_task(str(tmp_path))
    hf.Siglip2Config(architectures=["Siglip2ForImageClassification"]).save_pretrained(tmp_path)
    with pytest.raises(UnknownArchitecture, match=r"\(siglip2\), which bench cannot run"):
        load_task(str(tmp_path))


def test_no_weight_is_left_random(tmp_path: Path) -> None:
    folder = build.vit_classifier(tmp_path / "model")
    config = hf.AutoConfig.from_pretrained(folder)
    config.architectures = ["ViTModel"]
    config.save_pretrained(folder)
    images = pictures(tmp_path / "photos")
    first, second = (
        load_task(str(folder)),
        load_task(str(folder)),
    )  # its pooling layer was never saved
    pixels = first.pixels(images)
    assert torch.equal(first.outputs(first.model, pixels), second.outputs(second.model, pixels))
    state = hf.ViTModel.from_pretrained(folder).state_dict()
    state.pop("layernorm.bias")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"lacks 1 weights of ViTModel \(layernorm\.bias, \.\.\.\)"
    ):
        load_task(str(folder))


def test_arguments_that_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"goes with timm:NAME, torchvision:NAME or open_clip"):
        load_task("some/model", tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="--beams must be at least 1"):
        load_task("some/model", beams=0)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("timm:x", "timm", "timm"),
        ("torchvision:x", "torchvision", "timm"),
        ("open_clip:x", "open_clip", "open_clip"),
        ("a/b", "transformers", "hf"),
        ("a/b", "torchvision", "hf"),
    ],
)
def test_a_missing_extra_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module: None if module == package else real(module)
    )
    with pytest.raises(MissingExtra, match=rf"{package}.*pip install 'turbovlm\[{extra}\]'"):
        load_task(name)


def test_labels_are_for_classifiers(tmp_path: Path) -> None:
    embedder = load_task(str(build.vit_backbone(tmp_path / "model")))
    assert embedder.with_labels(None) is embedder
    with pytest.raises(ConfigError, match="--labels is for classifiers"):
        embedder.with_labels((1, 2))
    classifier = load_task(str(build.vit_classifier(tmp_path / "classes")))
    assert next(m.key for m in classifier.with_labels((0, 6)).comparisons) == "accuracy"
    with pytest.raises(InputError, match="the model has 7 classes"):
        classifier.with_labels((0, 7))


@pytest.mark.data
def test_real_weights_know_real_photographs() -> None:
    if not DATA.is_dir():
        pytest.skip("no real weights here: set TURBOVLM_DATA")
    weights = DATA / "vit_tiny_augreg/vit_tiny_patch16_224.safetensors"
    images = ImageFolder.open(DATA / "photos500", "labels.csv")
    task = load_task("timm:vit_tiny_patch16_224", weights).with_labels(images.labels)
    number = 100
    output = task.outputs(task.model, task.pixels([images.image(i) for i in range(number)]))
    scores = summarize(task.comparisons, task.compare(output, output, 0))
    # 89.2 % on all 500 with the model's own preprocessing; three standard errors of 100 images
    assert scores["accuracy"] == pytest.approx(0.892, abs=0.093)
