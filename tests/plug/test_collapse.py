"""The last block with one token beside the prefix: exact for readers of cls, refused for others."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import transformers as hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import turbovlm
from tests.hosts.zoo import DINO, SIZES, TIMM, pixels, wild
from turbovlm import Merge, errors
from turbovlm.maths.merge import merge
from turbovlm.maths.plan import collapsed

TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def vit(**fields: Any) -> Any:
    return wild(VisionTransformer(**{**TIMM, **fields}))


def llava(layer: int) -> Any:
    text = hf.LlamaConfig(vocab_size=50, num_key_value_heads=4, **TEXT)
    vision = hf.CLIPVisionConfig(**SIZES)
    image: dict[str, Any] = {"image_token_id": 49, "vision_feature_layer": layer}
    config = hf.LlavaConfig(vision_config=vision, text_config=text, **image)
    return hf.LlavaForConditionalGeneration(config)


def test_everything_behind_the_prefix_goes_into_one() -> None:
    plan = collapsed(2, 6, 2, torch.device("cpu"))
    assert plan.source.tolist() == [[3, 4, 5]] * 2
    assert plan.destination.tolist() == [[2, 2, 2]] * 2
    assert plan.keep.tolist() == [[0, 1, 2]] * 2
    assert plan.representative().tolist() == [[0, 1, 2, 2, 2, 2]] * 2
    x = torch.tensor([[[5.0], [7.0], [1.0], [2.0], [4.0], [9.0]]])
    size = torch.tensor([[1.0, 1.0, 1.0, 2.0, 3.0, 0.0]])  # the last one is padding
    y, total = merge(x, size, collapsed(1, 6, 2, x.device))
    torch.testing.assert_close(y[0, :, 0], torch.tensor([5.0, 7.0, (1 + 4 + 12) / 6]))
    assert total.tolist() == [[1.0, 1.0, 6.0]]


@pytest.mark.parametrize("r", [0, 3, (2, 0, 5, 0)])
@torch.no_grad()
def test_who_reads_cls_alone_gets_the_same(r: Any) -> None:
    model, x = vit(), pixels()
    with turbovlm.applied(model, Merge(r=r)) as run:
        expected, before = model(x), run.trace
    with turbovlm.applied(model, Merge(r=r, collapse=True)) as run:
        torch.testing.assert_close(model(x), expected)
        assert run.trace.tokens[-1] == 2
        tokens = model.forward_features(x)
    assert tokens.shape[1] == before.start  # called for its tokens it gives every position
    assert run.trace.tokens[:-1] == before.tokens[:-1]
    sizes = run.trace.sizes
    assert sizes is not None
    assert torch.equal(sizes.sum(1), torch.full((len(x),), float(before.start)))
    plain = model(x)
    assert torch.equal(plain, vit_again(model, x))
    assert torch.allclose(plain, expected) == (r == 0)


def vit_again(model: Any, x: Tensor) -> Tensor:
    """Applied and removed once more: nothing is left."""
    turbovlm.remove(turbovlm.apply(model, Merge(r=1, collapse=True)))
    return model(x)


@torch.no_grad()
def test_registers_and_a_distillation_token_stay() -> None:
    model: Any = wild(timm.create_model("deit_tiny_distilled_patch16_224", depth=2))
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    plain = model(x)
    with turbovlm.applied(model, Merge(r=0, collapse=True)):
        assert model.forward_features(x).shape[1] == 198
        torch.testing.assert_close(model(x), plain)


@torch.no_grad()
def test_another_library() -> None:
    model: Any = wild(hf.ViTForImageClassification(hf.ViTConfig(**SIZES)))
    x = pixels()
    plain = model(x).logits
    with turbovlm.applied(model, Merge(r=0, collapse=True)):
        torch.testing.assert_close(model(x).logits, plain)


@torch.no_grad()
def test_clip_and_a_padded_text_embedded_by_cls() -> None:
    """Their rows give all tokens back, as other readers may want them."""
    config = hf.CLIPVisionConfig(**SIZES, projection_dim=16)
    image, x = wild(hf.CLIPVisionModelWithProjection(config)), pixels()
    embedded = image(x).image_embeds
    with turbovlm.applied(image, Merge(r=0, collapse=True)):
        out = image(x)
    torch.testing.assert_close(out.image_embeds, embedded)
    assert out.last_hidden_state.shape[1] == image(x).last_hidden_state.shape[1]
    assert torch.equal(out.last_hidden_state[:, 1], out.last_hidden_state[:, 2])
    text: Any = wild(hf.BertForSequenceClassification(hf.BertConfig(vocab_size=100, **TEXT)))
    words = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    logits = text(words, attention_mask=mask).logits
    with turbovlm.applied(text, Merge(r=0, collapse=True)):
        torch.testing.assert_close(text(words, attention_mask=mask).logits, logits)


@torch.no_grad()
def test_one_graph_and_one_graph_only() -> None:
    model: Any = vit()
    x = pixels()
    with turbovlm.applied(model, Merge(r=2, collapse=True)):
        eager = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), eager)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: vit(global_pool="avg"), "what reads VisionTransformer is not known"),
        (lambda: vit(class_token=False, global_pool="avg"), "VisionTransformer has none"),
        (lambda: llava(-1), "what reads CLIPVisionModel is not known"),
        (lambda: llava(-2), "what reads CLIPVisionModel is not known"),
        (lambda: hf.ViTModel(hf.ViTConfig(**SIZES)), "what reads ViTModel is not known"),
        (
            lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**DINO)),
            "what reads Dinov2Model is not known",
        ),
        (
            lambda: hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=dict(SIZES))),
            "what reads CLIPVisionModel is not known",
        ),
        (lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZES)), "has none"),
    ],
)
def test_refused_where_it_would_be_wrong(build: Any, reason: str) -> None:
    model = build()
    with pytest.raises(errors.ConfigError, match=reason):
        turbovlm.apply(model, Merge(r=2, collapse=True))
    with pytest.raises(errors.NotApplied):
        turbovlm.remove(model)


def test_refused_beside_a_floor_and_as_anything_but_a_bool() -> None:
    with pytest.raises(errors.ConfigError, match="collapse leaves one token"):
        Merge(r=4, collapse=True, min_tokens=10)
    with pytest.raises(errors.ConfigError, match="collapse must be True or False"):
        Merge(r=4, collapse=1)  # type: ignore[arg-type]
    assert Merge.from_dict(Merge(r=4, collapse=True).to_dict()) == Merge(r=4, collapse=True)
