"""Models by name, without weights: what is built, what is run, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import turbovlm
from tests.workbench import build
from turbovlm.errors import ConfigError, MissingExtra, ModelError
from turbovlm_workbench.load.skeleton import TEXT_TOKENS, Skeleton, skeleton

hf = pytest.importorskip("transformers")
pytest.importorskip("timm")
pytest.importorskip("torchvision")

TEXT = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}


def folder(path: Path, config: Any, built: str = "") -> Path:
    """A folder with nothing but a config.json."""
    config.architectures = [built] if built else None
    config.save_pretrained(path)
    return path


def runs(on_meta: Skeleton) -> float:
    """GFLOPs of the model on its inputs, none of which is in memory."""
    assert all(p.is_meta for p in on_meta.model.parameters())
    assert all(t.is_meta for t in on_meta.inputs.values())
    assert not on_meta.model.training
    return turbovlm.flops(on_meta.model, on_meta.inputs).gflops


@pytest.mark.parametrize(
    ("name", "size", "what", "gflops"),
    [
        ("timm:vit_small_patch16_224", None, "VisionTransformer: one image of 224 px", 4.608),
        ("timm:vit_small_patch16_224.augreg_in1k", 384, "VisionTransformer: one image of 384 px",
         15.5),
        ("timm:vit_base_patch16_siglip_224", None, "VisionTransformer: one image of 224 px", 17.73),
        ("timm:resnet18", 64, "ResNet: one image of 64 px", 0.149),
        ("torchvision:vit_b_16", None, "VisionTransformer: one image of 224 px", 17.583),
        ("torchvision:vit_b_16", 384, "VisionTransformer: one image of 384 px", 55.540),
        ("torchvision:resnet18", 64, "ResNet: one image of 64 px", 0.149),
        ("open_clip:ViT-S-32", None, "CLIP: one image of 224 px, text of 77 tokens", 2.839),
        ("open_clip:ViT-S-32", 256, "CLIP: one image of 256 px, text of 77 tokens", 3.191),
    ],
)  # fmt: skip
def test_libraries(name: str, size: int | None, what: str, gflops: float) -> None:
    if name.startswith("open_clip"):
        pytest.importorskip("open_clip")
    on_meta = skeleton(name, size=size)
    assert (on_meta.name, on_meta.what) == (name, what)
    assert runs(on_meta) == pytest.approx(gflops, rel=5e-3)


def test_configurations(tmp_path: Path) -> None:
    """The class that the configuration names, from an image alone where that is enough."""
    vit = hf.ViTConfig(**build.SIZES)
    classifier = skeleton(str(folder(tmp_path / "a", vit, "ViTForImageClassification")))
    assert classifier.what == "ViTForImageClassification: one image of 32 px"
    assert list(classifier.inputs) == ["pixel_values"]
    assert runs(classifier) > 0
    assert skeleton(str(folder(tmp_path / "b", vit))).what == "ViTModel: one image of 32 px"
    larger = skeleton(str(tmp_path / "a"), size=64)
    assert larger.what == "ViTForImageClassification: one image of 64 px"
    assert runs(larger) > 4 * runs(classifier)


def test_text_goes_along_where_the_whole_needs_it(tmp_path: Path) -> None:
    clip = hf.CLIPConfig(
        vision_config=build.SIZES, text_config={**TEXT, "num_attention_heads": 2}, projection_dim=8
    )
    on_meta = skeleton(str(folder(tmp_path / "clip", clip, "CLIPModel")))
    assert on_meta.what == f"CLIPModel: one image of 32 px, text of {TEXT_TOKENS} tokens"
    assert on_meta.inputs["input_ids"].shape == (1, TEXT_TOKENS)
    assert runs(on_meta) > 0


def test_questions_and_answers(tmp_path: Path) -> None:
    text = {**TEXT, "num_attention_heads": 2, "encoder_hidden_size": 32}
    config = hf.BlipConfig(vision_config=build.SIZES, text_config=text)
    path = folder(tmp_path, config, "BlipForQuestionAnswering")
    on_meta = skeleton(str(path))
    assert on_meta.what == "BlipForQuestionAnswering: one image of 32 px, text of 32 + 32 tokens"
    assert runs(on_meta) > 0


def test_the_image_has_its_places_in_the_text(tmp_path: Path) -> None:
    """BLIP-2: 4 queries stand in the text; LLaVA: as many as the tower has patches."""
    build.blip2(tmp_path / "blip2")
    blip2 = skeleton(str(tmp_path / "blip2"))
    assert blip2.what.startswith("Blip2ForConditionalGeneration: ")
    assert blip2.inputs["input_ids"].shape == (1, 4 + TEXT_TOKENS)
    assert runs(blip2) > 0
    text = hf.LlamaConfig(**TEXT, num_attention_heads=2)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**build.SIZES),
        text_config=text,
        image_token_id=39,
        vision_feature_layer=-2,
    )
    llava = skeleton(str(folder(tmp_path / "llava", config, "LlavaForConditionalGeneration")))
    assert llava.inputs["input_ids"].shape == (1, 64 + TEXT_TOKENS)
    assert runs(llava) > 0


def test_the_tower_alone_where_the_whole_cannot_run(tmp_path: Path) -> None:
    """Without a token that stands for the image, BLIP-2 has no place for it."""
    vision = {**build.SIZES, "image_size": 28, "patch_size": 14}
    text = hf.OPTConfig(vocab_size=40, hidden_size=32, ffn_dim=32, num_hidden_layers=1,
                        num_attention_heads=2, word_embed_proj_dim=32)  # fmt: skip
    qformer = {**TEXT, "num_attention_heads": 2, "encoder_hidden_size": 32}
    config = hf.Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text)
    on_meta = skeleton(str(folder(tmp_path, config, "Blip2ForImageTextRetrieval")))
    assert on_meta.what == (
        "Blip2VisionModel: one image of 28 px, not the whole Blip2ForImageTextRetrieval"
    )
    assert type(on_meta.model) is hf.Blip2VisionModel
    assert runs(on_meta) > 0


def test_our_own_architectures_are_known(tmp_path: Path) -> None:
    """NLVR2 takes two images, so one goes through its tower."""
    from turbovlm_workbench.paper.nlvr import NlvrConfig

    text = {**TEXT, "num_attention_heads": 2}
    config = NlvrConfig(vision_config=build.SIZES, text_config=text, enc_token_id=39)
    on_meta = skeleton(str(folder(tmp_path, config, "BlipForNlvr")))
    assert on_meta.what == "BlipVisionModel: one image of 32 px, not the whole BlipForNlvr"
    assert runs(on_meta) > 0


def test_on_the_cpu_the_weights_are_random_and_the_same_every_time() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (skeleton(f"timm:{build.TINY}", "cpu") for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        outputs = [on_meta.model(**on_meta.inputs) for on_meta in (first, second)]
    assert torch.equal(*outputs)
    assert outputs[0].std() > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_base_patch16_22", "timm has no model .* did you mean vit_base_patch16_224"),
        ("torchvision:vit_b_15", "torchvision has no model .* did you mean vit_b_16"),
        ("torchvision:nothing_like_it", r"see torchvision's list_models\(\)"),
        ("open_clip:ViT-B-33", "open_clip has no model .* did you mean ViT-B-32"),
        ("keras:vit", "no library 'keras' .* timm:NAME, torchvision:NAME or open_clip:NAME"),
        ("timm:inception_v3", "cannot be run .*InceptionV3, not run: .* check the size"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    if name.startswith("open_clip"):
        pytest.importorskip("open_clip")
    with pytest.raises(ModelError, match=message):
        skeleton(name, size=8 if "inception" in name else None)


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no configuration of .* local folder with its config"):
        skeleton(str(tmp_path))


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ModelError, match=r"couldn't connect .* local folder with its config.json"):
        skeleton("someone/some-model")


def test_a_model_of_text_alone(tmp_path: Path) -> None:
    path = folder(tmp_path, hf.BertConfig(**TEXT, num_attention_heads=2), "BertModel")
    with pytest.raises(ModelError, match=r"BertModel.* takes no images"):
        skeleton(str(path))


def test_sizes_below_one() -> None:
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        skeleton("timm:test_vit", size=0)


@pytest.mark.parametrize(
    ("name", "extra"), [("timm:a", "timm"), ("open_clip:a", "open_clip"), ("a/b", "hf")]
)
def test_missing_libraries(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=rf"turbovlm\[{extra}\]"):
        skeleton(name)


def test_open_clip_does_not_warn_of_missing_weights(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("open_clip")
    skeleton("open_clip:ViT-S-32")
    assert caplog.records == []
