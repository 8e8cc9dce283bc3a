"""Applying and removing: what is found, what is refused, and that a refusal changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import transformers as hf
from accelerate.hooks import ModelHook, add_hook_to_module
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

import turbovlm
from tests.hosts.zoo import SIZES, TIMM, pixels, wild
from turbovlm import Merge, errors, hosts
from turbovlm.plug.encoder.block import TurboBlock

TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def vit(**fields: Any) -> Any:
    return wild(VisionTransformer(**{**TIMM, **fields}))


def patched(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, TurboBlock)]


def test_only_the_vision_tower_of_clip_is_patched() -> None:
    model = hf.CLIPModel(hf.CLIPConfig(vision_config=dict(SIZES), text_config=dict(TEXT)))
    turbovlm.apply(model, Merge(r=4))
    assert patched(model) == [f"vision_model.encoder.layers.{i}" for i in range(4)]


@pytest.mark.parametrize(
    "build",
    [
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**SIZES)),
        lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**SIZES)),
        lambda: hf.Dinov2ForImageClassification(
            hf.Dinov2Config(**{k: v for k, v in SIZES.items() if k != "intermediate_size"})
        ),
        lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**SIZES)),
        lambda: hf.SiglipForImageClassification(hf.SiglipConfig(vision_config=dict(SIZES))),
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", depth=4),
    ],
)
def test_task_models_are_patched_inside(build: Any) -> None:
    model = build()
    turbovlm.apply(model, Merge(r=4))
    assert len(patched(model)) == 4


def test_unknown_architecture_names_the_way_out() -> None:
    with pytest.raises(errors.UnknownArchitecture, match=r"no row describes ResNet.*register"):
        turbovlm.apply(timm.create_model("resnet18"), Merge(r=4))
    with pytest.raises(errors.UnknownArchitecture, match=r"expected a torch model or .*, got str"):
        turbovlm.apply("vit", Merge(r=4))  # type: ignore[type-var]


def test_zero_blocks_is_an_error() -> None:
    class Unheard(nn.Module):
        def __init__(self, **_: Any) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(errors.NothingToPatch, match="Unheard"):
        turbovlm.apply(vit(block_fn=Unheard), Merge(r=4))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT)), "CLIPTextModel .*end-of-text"),
        (lambda: hf.SiglipTextModel(hf.SiglipTextConfig(**TEXT)), "SiglipTextModel .*fixed posit"),
        (lambda: hf.BertModel(hf.BertConfig(**TEXT, is_decoder=True)), "BertModel.*causal decoder"),
        (lambda: hf.BlipTextLMHeadModel(hf.BlipTextConfig(**TEXT)), "word by word"),
        (lambda: vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock), "in parallel"),
        (lambda: vit(block_fn=timm.models.vision_transformer.ParallelThingsBlock), "several att"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "SwinTransformer .*windows"),
        (lambda: timm.create_model("davit_tiny"), "DaVit .*windows"),
        (
            lambda: hf.SwinModel(hf.SwinConfig(depths=[1, 1], num_heads=[1, 2], embed_dim=8)),
            "SwinModel .*windows",
        ),
        (lambda: timm.create_model("beit_base_patch16_224"), "Beit .*bias per pair"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_unsuitable_architectures_are_refused_with_the_reason(build: Any, reason: str) -> None:
    model = build()
    with pytest.raises(errors.UnsuitableBlock, match=reason):
        turbovlm.apply(model, Merge(r=4))
    assert patched(model) == []


class Parallel(Block):
    """A block whose branches do not follow one another."""

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))


class Hidden(Block):
    """A block whose attention no tap can see."""

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        return x + self.norm1(x) + self.mlp(self.norm2(x))


@pytest.mark.parametrize(
    ("block", "error", "words"),
    [
        (Parallel, errors.UnsuitableBlock, "halves .* differ"),
        (Hidden, errors.UnseenAttention, "attn_implementation='sdpa'"),
    ],
)
@torch.no_grad()
def test_the_self_check_refuses_and_leaves_the_model_alone(
    block: type[Block], error: type[Exception], words: str
) -> None:
    model, x = vit(block_fn=block), pixels()
    expected = model(x)
    with pytest.raises(error, match=words):
        turbovlm.apply(model, Merge(r=4))
    assert patched(model) == []
    assert not any("turbo_site" in m.__dict__ for m in model.modules())
    assert torch.equal(model(x), expected)


def test_the_self_check_leaves_training_mode_and_random_state_alone() -> None:
    model = vit(proj_drop_rate=0.1).train()
    model.blocks[0].norm1.eval()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    turbovlm.apply(model, Merge(r=4))
    assert torch.equal(torch.rand(4), expected)
    assert model.blocks[0].training
    assert not model.blocks[0].norm1.training


def test_applied_twice_and_removed_twice() -> None:
    model = vit()
    with pytest.raises(errors.NotApplied, match="nothing to remove"):
        turbovlm.remove(model)
    turbovlm.apply(model, Merge(r=4))
    with pytest.raises(errors.AlreadyApplied, match="remove"):
        turbovlm.apply(model, Merge(r=8))
    turbovlm.remove(model)
    with pytest.raises(errors.NotApplied):
        turbovlm.remove(model)


def test_a_list_of_the_wrong_length_is_refused_before_anything_changes() -> None:
    model = vit()
    with pytest.raises(errors.ConfigError, match="lists 3 blocks but the model has 4"):
        turbovlm.apply(model, Merge(r=(1, 2, 3)))
    assert patched(model) == []


def test_no_setting_given_and_none_stored() -> None:
    model = hf.ViTModel(hf.ViTConfig(**SIZES))
    with pytest.raises(errors.ConfigError, match="no setting is stored"):
        turbovlm.apply(model)
    with pytest.raises(errors.ConfigError, match=r"expected one of turbovlm\.Merge"):
        turbovlm.apply(model, 16)  # type: ignore[arg-type]


def test_a_registered_row_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_registered", [])

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(Block(48, 4) for _ in range(2)))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    with pytest.raises(errors.UnknownArchitecture):
        turbovlm.apply(Mine(), Merge(r=4))
    turbovlm.register(
        turbovlm.Row(
            block="timm.models.vision_transformer.Block",
            towers=(f"{Mine.__module__}.{Mine.__qualname__}",),
            attention=("attn", "norm1"),
            mlp=("mlp", "norm2"),
        )
    )
    assert turbovlm.apply(Mine(), Merge(r=4))(torch.randn(1, 17, 48)).shape == (1, 17, 48)


def test_a_registered_row_overrides_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_registered", [])
    model = hf.SiglipTextModel(hf.SiglipTextConfig(**TEXT))
    with pytest.raises(errors.UnsuitableBlock, match="fixed position"):
        turbovlm.apply(model, Merge(r=2))
    package = "transformers.models.siglip.modeling_siglip"
    turbovlm.register(
        turbovlm.Row(
            block=f"{package}.SiglipEncoderLayer",
            towers=(f"{package}.SiglipTextModel",),
            attention=("self_attn", "layer_norm1"),
            mlp=("mlp", "layer_norm2"),
            modality="text",
        )
    )
    turbovlm.apply(model, Merge(r=2))
    assert len(patched(model)) == 2


class Biased(Block):
    """Attention with learned keys beside the tokens', which no merge can follow."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(dim=fields["dim"], num_heads=fields["num_heads"])
        self.attn: Any = nn.MultiheadAttention(48, 4, batch_first=True, add_bias_kv=True)

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class FickleAttention(Attention):
    """Computes something else while it is watched."""

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        watched = torch.overrides._get_current_function_mode() is not None
        return super().forward(x) * (3.0 if watched else 1.0)


class Fickle(Block):
    def __init__(self, **fields: Any) -> None:
        super().__init__(dim=fields["dim"], num_heads=fields["num_heads"])
        self.attn = FickleAttention(fields["dim"], num_heads=fields["num_heads"])


@pytest.mark.parametrize(
    ("block", "error", "words"),
    [
        (Biased, errors.UnsupportedInput, "masks, key biases or separate keys"),
        (Fickle, errors.UnsuitableBlock, "something else while it is watched"),
    ],
)
def test_attention_that_cannot_be_followed_is_refused(
    block: type[Block], error: type[Exception], words: str
) -> None:
    model = vit(block_fn=block)
    with pytest.raises(error, match=words):
        turbovlm.apply(model, Merge(r=4))
    assert patched(model) == []


@pytest.mark.parametrize("hooks_first", [True, False])
@torch.no_grad()
def test_accelerate_hooks_survive(hooks_first: bool) -> None:
    """accelerate stores forward on the instance, where a class swap alone would be bypassed."""
    model: Any = hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES)).eval()
    x = pixels()
    expected = model(pixel_values=x).pooler_output
    with turbovlm.applied(model, Merge(r=5)):
        merged = model(pixel_values=x).pooler_output

    def hook() -> None:
        for block in model.encoder.layers:
            add_hook_to_module(block, ModelHook())
            add_hook_to_module(block.mlp, ModelHook())

    if hooks_first:
        hook()
    turbovlm.apply(model, Merge(r=5))
    if not hooks_first:
        hook()
    assert torch.equal(model(pixel_values=x).pooler_output, merged)
    turbovlm.remove(model)
    assert torch.equal(model(pixel_values=x).pooler_output, expected)


def test_a_forward_replaced_by_another_plug_in_is_refused() -> None:
    model = vit()
    model.blocks[2].forward = lambda x: x
    with pytest.raises(errors.UnsuitableBlock, match="another plug-in"):
        turbovlm.apply(model, Merge(r=4))
    assert patched(model) == []
    assert "turbo_site" not in model.blocks[2].__dict__
