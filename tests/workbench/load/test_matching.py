from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import open_clip.factory
import pytest
import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

import turbovlm
from tests.workbench import build
from turbovlm import Merge
from turbovlm.errors import ConfigError, ModelError
from turbovlm_workbench.load.by_task import load_matching
from turbovlm_workbench.load.matching import MatchingModel, OpenClipMatching

TEXTS = ["word3 word4 word5", "word9", "word1 word7 word2 word8 word20 word11"]
BERT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": len(build.WORDS),
    "bos_token_id": 2,
    "eos_token_id": 3,
    "sep_token_id": 3,
    "pad_token_id": 0,
}
VISION = {**build.SIZES, "initializer_range": 0.02}
DUALS: dict[str, Callable[[], Any]] = {
    "clip": lambda: hf.CLIPModel(
        hf.CLIPConfig(vision_config=VISION, text_config=BERT, projection_dim=24)
    ),
    "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(vision_config=VISION, text_config=BERT)),
    "metaclip_2": lambda: hf.MetaClip2Model(
        hf.MetaClip2Config(vision_config=VISION, text_config=BERT, projection_dim=24)
    ),
    "altclip": lambda: hf.AltCLIPModel(
        hf.AltCLIPConfig(
            vision_config=VISION, text_config={**BERT, "project_dim": 16}, projection_dim=24
        )
    ),
    "chinese_clip": lambda: hf.ChineseCLIPModel(
        hf.ChineseCLIPConfig(vision_config=VISION, text_config=BERT, projection_dim=24)
    ),
    "two towers": lambda: hf.VisionTextDualEncoderModel(
        hf.VisionTextDualEncoderConfig(
            vision_config=hf.ViTConfig(**VISION).to_dict(),
            text_config=hf.BertConfig(**BERT).to_dict(),
            projection_dim=24,
        )
    ),
}


def save(folder: Path, model: Any, words: list[str] = build.WORDS) -> Path:
    build.wild(model).save_pretrained(folder)
    hf.BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    ids = {word: index for index, word in enumerate(words)}
    hf.BertTokenizer(vocab=ids).save_pretrained(folder)
    return folder


def blip(folder: Path, more: int = 0) -> Path:
    text = {**BERT, "vocab_size": len(build.WORDS) + more}
    config = hf.BlipConfig(vision_config=VISION, text_config=text, image_text_hidden_size=24)
    return save(folder, hf.BlipForImageTextRetrieval(config))


def blip2(folder: Path) -> Path:
    qformer = {**BERT, "encoder_hidden_size": 32, "use_qformer_text_input": True}
    config = hf.Blip2Config(
        vision_config=VISION, qformer_config=qformer, text_config=hf.OPTConfig(hidden_size=32),
        num_query_tokens=4, image_text_hidden_size=24,
    )  # fmt: skip
    return save(folder, hf.Blip2ForImageTextRetrieval(config))


def dual(folder: Path, kind: str) -> Path:
    return save(folder, DUALS[kind]())


def pixels(number: int = 3) -> Tensor:
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tokens(matcher: MatchingModel, *texts: str, **options: Any) -> dict[str, Tensor]:
    """As a person who uses the host alone would prepare texts."""
    found = matcher.tokenizer(list(texts), return_tensors="pt", **{"padding": True, **options})
    return {key: found[key] for key in ("input_ids", "attention_mask")}


def check_embeddings(matcher: MatchingModel, host: Tensor) -> None:
    """Against the host's similarities of all images and texts, in batches and one by one."""
    images, texts = matcher.see(pixels()), matcher.read(TEXTS)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(images.shape[:-1]))
    similarity = matcher.similarity(images, texts)
    assert similarity.shape == (3, 3)
    assert host.std() > 1e-3
    torch.testing.assert_close(similarity, host, atol=1e-5, rtol=1e-5)
    for index, text in enumerate(TEXTS):  # alone there is no padding
        torch.testing.assert_close(matcher.read([text])[0], texts[index], atol=1e-5, rtol=1e-5)
        alone = matcher.see(pixels()[index : index + 1])[0]
        torch.testing.assert_close(alone, images[index], atol=1e-5, rtol=1e-5)
    with turbovlm.applied(matcher.model, Merge(r=2)) as run:
        merged = matcher.see(pixels())
        assert run.trace.start > run.trace.tokens[-1]
    assert merged.shape == images.shape
    assert (merged - images).abs().max() > 1e-4
    assert torch.equal(matcher.see(pixels()), images)


@pytest.mark.parametrize("kind", DUALS)
@torch.inference_mode()
def test_two_encoders(tmp_path: Path, kind: str) -> None:
    matcher = load_matching(str(dual(tmp_path / "model", kind)))
    assert (matcher.name, matcher.model.training) == (str(tmp_path / "model"), False)
    assert not matcher.reranks
    inputs = tokens(matcher, *TEXTS)
    if kind == "siglip":  # trained on texts of full length, and attends to all of it
        length = matcher.model.config.text_config.max_position_embeddings
        inputs = tokens(matcher, *TEXTS, padding="max_length", max_length=length)
        del inputs["attention_mask"]
    out = matcher.model(**inputs, pixel_values=pixels())
    check_embeddings(matcher, normalize(out.image_embeds) @ normalize(out.text_embeds).T)
    with pytest.raises(ModelError, match="has no matching head: rank by similarity alone"):
        matcher.features(pixels())
    with pytest.raises(ModelError, match="has no matching head"):
        matcher.match(torch.zeros(3, 5, 32), TEXTS)


def check_matching(matcher: MatchingModel, host: Callable[[Tensor, str], Tensor]) -> None:
    """The matching head on kept features, against the host's whole forward of one pair."""
    assert matcher.reranks
    features = matcher.features(pixels())
    assert features.shape[:2] == (3, 65)
    scores = matcher.match(features, TEXTS)
    expected = torch.cat([host(pixels()[i : i + 1], text) for i, text in enumerate(TEXTS)])
    assert expected.shape == (3,)
    assert expected.std() > 1e-3
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    with turbovlm.applied(matcher.model, Merge(r=2)):
        merged = matcher.features(pixels())
        assert merged.shape[1] == 65 - 2 * build.SIZES["num_hidden_layers"]
        assert (matcher.match(merged, TEXTS) - scores).abs().max() > 1e-4


@torch.inference_mode()
def test_blip(tmp_path: Path) -> None:
    matcher = load_matching(str(blip(tmp_path / "model")))
    model = matcher.model
    host = model(**tokens(matcher, *TEXTS), pixel_values=pixels(), use_itm_head=False).itm_score
    check_embeddings(matcher, host)
    check_matching(
        matcher,
        lambda image, text: model(
            **tokens(matcher, text), pixel_values=image, use_itm_head=True
        ).itm_score[:, 1],
    )


@torch.inference_mode()
def test_blip_of_the_published_vocabulary_reads_enc_beside_an_image(tmp_path: Path) -> None:
    """It ends with [DEC] and [ENC], which the tokenizer does not know."""
    matcher = load_matching(str(blip(tmp_path / "model", more=2)))
    model = matcher.model
    host = model(**tokens(matcher, *TEXTS), pixel_values=pixels(), use_itm_head=False).itm_score
    check_embeddings(matcher, host)

    def published(image: Tensor, text: str) -> Tensor:
        inputs = tokens(matcher, text)
        plain = model(**inputs, pixel_values=image).itm_score
        inputs["input_ids"][:, 0] = len(build.WORDS) + 1
        score = model(**inputs, pixel_values=image).itm_score
        assert (score - plain).abs().max() > 1e-4
        return score[:, 1]

    check_matching(matcher, published)


@torch.inference_mode()
def test_blip_of_a_tokenizer_that_knows_enc(tmp_path: Path) -> None:
    words = [*build.WORDS[:-1], "[ENC]"]
    text = {**BERT, "vocab_size": len(words)}
    config = hf.BlipConfig(vision_config=VISION, text_config=text, image_text_hidden_size=24)
    matcher = load_matching(str(save(tmp_path, hf.BlipForImageTextRetrieval(config), words)))
    inputs = tokens(matcher, TEXTS[0])
    inputs["input_ids"][:, 0] = len(words) - 1
    image = pixels(1)
    host = matcher.model(**inputs, pixel_values=image).itm_score[:, 1]
    torch.testing.assert_close(matcher.match(matcher.features(image), TEXTS[:1]), host)


@torch.inference_mode()
def test_blip2(tmp_path: Path) -> None:
    matcher = load_matching(str(blip2(tmp_path / "model")))
    model = matcher.model
    assert model.config.image_token_index is None  # then its forward takes text alone
    host = model(**tokens(matcher, *TEXTS), pixel_values=pixels()).logits_per_image
    assert matcher.see(pixels()).shape == (3, 4, 24)
    check_embeddings(matcher, host)
    check_matching(
        matcher,
        lambda image, text: model(
            **tokens(matcher, text), pixel_values=image, use_image_text_matching_head=True
        ).logits_per_image[:, 1],
    )


@torch.inference_mode()
def test_long_texts_are_cut_to_what_the_model_reads(tmp_path: Path) -> None:
    matcher = load_matching(str(dual(tmp_path, "clip")))
    longest = matcher.model.config.text_config.max_position_embeddings
    assert longest == 77
    ids = matcher.tokens(["word3 " * 100, "word4"], longest)["input_ids"]
    assert ids.shape == (2, 77)
    assert matcher.read(["word3 " * 100]).shape == (1, 24)


@pytest.fixture
def _registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip knows two small models with the vocabulary of its own tokenizer."""
    for table in ("_MODEL_CONFIGS", "_MODEL_CONFIG_PATHS"):
        monkeypatch.setattr(open_clip.factory, table, getattr(open_clip.factory, table).copy())
    folder = build.open_clip_configs(tmp_path / "configs")
    for path in folder.iterdir():
        config = json.loads(path.read_text())
        config["text_cfg"]["vocab_size"] = 49408
        path.write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize("name", ["tiny-clip", "tiny-coca"])
@torch.inference_mode()
def test_open_clip(tmp_path: Path, name: str) -> None:
    path = build.open_clip_weights(tmp_path / "w.safetensors", name)
    matcher = load_matching(f"open_clip:{name}", path)
    assert (matcher.name, matcher.model.training) == (f"open_clip:{name}", False)
    model: Any
    transform: Any
    model, _, transform = open_clip.create_model_and_transforms(
        name, pretrained=str(path), output_dict=True
    )
    photo = Image.effect_noise((50, 40), 90).convert("RGB")
    assert torch.equal(matcher.prepare([photo])[0], transform(photo))
    ids = open_clip.get_tokenizer(name)(TEXTS)
    out = model.eval()(pixels(), ids)
    image, text = out["image_features"], out["text_features"]
    check_embeddings(matcher, image @ text.T)


@pytest.mark.usefixtures("_registry")
def test_open_clip_names_and_files_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model 'ViT-B/32': did you mean ViT-B-32"):
        load_matching("open_clip:ViT-B/32")
    with pytest.raises(ModelError, match=r"no weights file .*gone\.pth"):
        load_matching("open_clip:tiny-clip", tmp_path / "gone.pth")
    path = build.open_clip_weights(tmp_path / "w.safetensors", "tiny-coca")
    with pytest.raises(ModelError, match=r"w\.safetensors does not fit open_clip:tiny-clip"):
        load_matching("open_clip:tiny-clip", path)
    with pytest.raises(ModelError, match=r"no published weights of tiny-clip"):
        load_matching("open_clip:tiny-clip")
    with pytest.raises(ConfigError, match=r"--weights goes with open_clip:NAME"):
        load_matching(str(tmp_path), path)


def test_the_most_similar_query_counts() -> None:
    """Worked by hand: two images with two queries each, three texts."""
    matcher = OpenClipMatching(None, None, "by hand", None)  # pyright: ignore[reportArgumentType]
    images = torch.tensor([[[1.0, 0.0], [0.6, 0.8]], [[0.0, -1.0], [-0.8, 0.6]]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, -0.8]])
    expected = torch.tensor([[1.0, 0.8, -0.6], [0.0, 0.6, 0.8]])
    torch.testing.assert_close(matcher.similarity(images, texts), expected)
    one = matcher.similarity(images[:, 0], texts)
    torch.testing.assert_close(one, torch.tensor([[1.0, 0.0, -0.6], [0.0, -1.0, 0.8]]))
