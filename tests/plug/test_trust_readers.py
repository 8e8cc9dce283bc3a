"""Who reads a tower, and where: every reader gets the host's shapes and each token's own value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip.transformer
import pytest
import timm
import torch
import transformers as hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import turbovlm
from tests.hosts.test_readers import IMAGE, LLAMA, llava, prompt
from tests.hosts.zoo import DEPTH, DINO, SIZES, TIMM, pixels, scaled, spectra, wild
from tests.hosts.zoo_copies import BACKBONES
from turbovlm import Merge
from turbovlm.errors import UnsupportedInput
from turbovlm.plug.encoder.trace import Trace

R = 5
Maps = Callable[[Any, Tensor], list[Tensor]]


def vit(**fields: Any) -> Any:
    return wild(VisionTransformer(**TIMM | fields))


def tokens(x: Tensor) -> Tensor:
    """A map ``(B, C, h, w)`` as tokens ``(B, h w, C)``; tokens as they are."""
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x


def each_has_its_own(y: Tensor, trace: Trace, blocks: int) -> None:
    """Every position of ``y`` ``(B, N, C)`` has the value of the token that stands for it."""
    owner, kept = trace.representative(blocks), trace.survivors(blocks)
    place = kept.gather(1, owner).expand(len(y), -1)
    skipped = trace.start - y.shape[1]  # maps come without the prefix
    assert 0 <= skipped <= trace.prefix_tokens
    place = place[:, skipped:] - skipped
    assert place.shape == y.shape[:2]
    for row, at in zip(y, place, strict=True):
        torch.testing.assert_close(row[at], row, atol=1e-6, rtol=1e-6)
    if blocks:
        assert len(set(place[0].tolist())) == y.shape[1] - blocks * R  # and merging took place


def check_maps(model: nn.Module, x: Tensor, maps: Maps, layers: tuple[int, ...]) -> None:
    """Compare what a reader gets with and without merging; ``layers`` blocks before each map."""
    host = maps(model, x)
    with turbovlm.applied(model, Merge(r=R)) as run:
        ours = maps(model, x)
        trace = run.trace
    assert [m.shape for m in ours] == [m.shape for m in host]
    assert len(ours) == len(layers)
    for ours_one, host_one, blocks in zip(ours, host, layers, strict=True):
        each_has_its_own(tokens(ours_one), trace, blocks)
        assert torch.equal(ours_one, host_one) == (blocks == 0)
        assert blocks == 0 or (ours_one - host_one).abs().max() > 1e-3
    for again, before in zip(maps(model, x), host, strict=True):
        assert torch.equal(again, before)


TIMM_READERS: dict[str, tuple[Maps, tuple[int, ...]]] = {
    "intermediates": (lambda m, x: list(m.forward_intermediates(x)[1]), (1, 2, 3, 4)),
    "some": (
        lambda m, x: list(m.forward_intermediates(x, indices=[0, 3], output_fmt="NLC")[1]),
        (1, 4),
    ),
    "with the last": (
        lambda m, x: [m.forward_intermediates(x, indices=[1], norm=True)[0]],
        (4,),
    ),
    "layers": (
        lambda m, x: list(m.get_intermediate_layers(x, n=[1, 3], reshape=True, norm=True)),
        (2, 4),
    ),
    "features": (lambda m, x: [m.forward_features(x)], (4,)),
}


@pytest.mark.parametrize("name", TIMM_READERS)
@torch.no_grad()
def test_feature_maps_of_timm(name: str) -> None:
    maps, layers = TIMM_READERS[name]
    check_maps(vit(global_pool="token"), pixels(), maps, layers)
    check_maps(vit(reg_tokens=2), pixels(), maps, layers)


@torch.no_grad()
def test_features_only() -> None:
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=128, depth=4, features_only=True, out_indices=(1, 3)
    )
    check_maps(wild(net), torch.randn(2, 3, 128, 128), lambda m, x: m(x), (2, 4))


@torch.no_grad()
def test_the_wrapper_of_timm_in_transformers() -> None:
    config = hf.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args={"img_size": 128, "depth": 4}
    )
    model, x = wild(hf.TimmWrapperModel(config)), torch.randn(2, 3, 128, 128)
    check_maps(
        model, x, lambda m, x: list(m(x, output_hidden_states=True).hidden_states), (1, 2, 3, 4)
    )
    check_maps(model, x, lambda m, x: [m(x).last_hidden_state], (4,))


@torch.no_grad()
def test_intermediates_of_open_clip() -> None:
    def maps(model: Any, x: Tensor) -> list[Tensor]:
        return list(
            model.forward_intermediates(x, normalize_intermediates=True)["image_intermediates"]
        )

    model = wild(open_clip.transformer.VisionTransformer(64, 8, 48, DEPTH, 4, 2.0))
    check_maps(model, pixels(), maps, (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("asked", "layers"),
    [(True, (0, 1, 2, 3, 4)), (2, (2,)), (-2, (3,)), ([0, 3], (0, 3)), ([-1], (4,))],
    ids=str,
)
@pytest.mark.parametrize(
    "build",
    [
        lambda: hf.ViTModel(hf.ViTConfig(**SIZES)),
        lambda: hf.Dinov2Model(hf.Dinov2Config(**DINO)),
        lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**SIZES)),
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**SIZES)),
    ],
    ids=["vit", "dinov2", "clip", "classifier"],
)
@torch.no_grad()
def test_hidden_states(build: Callable[[], nn.Module], asked: Any, layers: tuple[int, ...]) -> None:
    def maps(model: Any, x: Tensor) -> list[Tensor]:
        states = model(x, output_hidden_states=asked).hidden_states
        return [states[layer] for layer in layers]

    check_maps(scaled(wild(build()), "lambda"), pixels(), maps, layers)


@torch.no_grad()
def test_hidden_states_by_configuration() -> None:
    model: Any = wild(hf.ViTModel(hf.ViTConfig(**SIZES)))
    model.config.output_hidden_states = True
    check_maps(model, pixels(), lambda m, x: list(m(x).hidden_states), (0, 1, 2, 3, 4))


@pytest.mark.parametrize("case", BACKBONES, ids=lambda c: c.name)
@torch.no_grad()
def test_backbones(case: Any) -> None:
    model = case.build()
    check_maps(model, pixels(), lambda m, x: list(m(x).feature_maps), (2, 4))
    check_maps(
        model,
        pixels(),
        lambda m, x: list(m(x, output_hidden_states=True).hidden_states),
        (0, 1, 2, 3, 4),
    )


STAGES: dict[str, Any] = {
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "reshape_hidden_states": False,
    "apply_layernorm": False,
}
LABELS: dict[str, Any] = {"num_labels": 3}
NECK: dict[str, Any] = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}


def backbone(**fields: Any) -> Any:
    return hf.Dinov2Config(**DINO, **STAGES | fields)


def depth_anything() -> nn.Module:
    return hf.DepthAnythingForDepthEstimation(
        hf.DepthAnythingConfig(
            backbone_config=backbone(), reassemble_hidden_size=48, patch_size=8, **NECK
        )
    )


def dpt() -> nn.Module:
    config = hf.DPTConfig(**SIZES, **NECK, backbone_out_indices=[0, 1, 2, 3])
    return hf.DPTForDepthEstimation(config)


def dpt_around_dinov2() -> nn.Module:
    config = hf.DPTConfig(backbone_config=backbone(), **NECK, hidden_size=48, patch_size=8)
    return hf.DPTForDepthEstimation(config)


def dpt_segmentation() -> nn.Module:
    config = hf.DPTConfig(**SIZES, **NECK, **LABELS, backbone_out_indices=[0, 1, 2, 3])
    return hf.DPTForSemanticSegmentation(config)


def upernet() -> nn.Module:
    return hf.UperNetForSemanticSegmentation(
        hf.UperNetConfig(
            backbone_config=backbone(reshape_hidden_states=True),
            hidden_size=8,
            **LABELS,
            pool_scales=[1, 2],
            auxiliary_channels=8,
            auxiliary_in_channels=48,
        )
    )


@pytest.mark.parametrize(
    "build", [depth_anything, dpt, dpt_around_dinov2, dpt_segmentation, upernet]
)
@torch.no_grad()
def test_depth_and_segmentation(build: Callable[[], nn.Module]) -> None:
    model: Any = scaled(wild(build()), "lambda")
    for layer in model.modules():  # a depth of random weights is often below 0, which ReLU cuts off
        if isinstance(layer, nn.Conv2d) and layer.out_channels == 1 and layer.bias is not None:
            layer.bias.data += 5
    x = pixels()
    with turbovlm.applied(model, Merge(r=0)):
        host = model(x)[0]
    assert torch.equal(model(x)[0], host)
    with turbovlm.applied(model, Merge(r=R)) as run:
        merged = model(x)[0]
        assert run.trace.tokens == (60, 55, 50, 45)
    assert merged.shape == host.shape
    assert (merged - host).abs().max() > 1e-4 * host.abs().max()
    assert torch.equal(model(x)[0], host)


@pytest.mark.parametrize("side", [64, 96, 40])
@torch.no_grad()
def test_masked_image_modelling_at_another_size(side: int) -> None:
    model: Any = wild(hf.ViTForMaskedImageModeling(hf.ViTConfig(**SIZES, encoder_stride=8)))
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    options = {"interpolate_pos_encoding": side != 64}
    host = model(x, **options).reconstruction
    with turbovlm.applied(model, Merge(r=R)) as run:
        merged = model(x, **options).reconstruction
        patches = merged.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        each_has_its_own(patches.flatten(2), run.trace, 4)
    assert merged.shape == host.shape == x.shape
    assert (merged - host).abs().max() > 1e-3


WHISPER: dict[str, Any] = {
    "d_model": 48, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 96,
    "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 96,
    "max_source_positions": 60, "max_target_positions": 32, "num_mel_bins": 16, "vocab_size": 100,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3,
    "begin_suppress_tokens": None, "classifier_proj_size": 8, "num_labels": 3,
}  # fmt: skip
EAGER: dict[str, Any] = WHISPER | {"attn_implementation": "eager"}


EAGER: dict[str, Any] = WHISPER | {"attn_implementation": "eager"}


@torch.no_grad()
def test_word_timestamps_are_refused() -> None:
    config = hf.WhisperConfig(**EAGER)
    model: Any = wild(hf.WhisperForConditionalGeneration(config))
    model.generation_config.alignment_heads = [[0, 0]]
    options = {"return_token_timestamps": True, "max_new_tokens": 3}
    turbovlm.apply(model, Merge(r=R))
    with pytest.raises(UnsupportedInput, match="word timestamps"):
        model.generate(spectra(), **options)
    turbovlm.remove(model)
    assert "token_timestamps" in model.generate(spectra(), **options)


@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_audio_classification_weighs_by_size(weighted: bool) -> None:
    config = hf.WhisperConfig(**WHISPER, use_weighted_layer_sum=weighted)
    model: Any = wild(hf.WhisperForAudioClassification(config))
    host = model(spectra()).logits
    with turbovlm.applied(model, Merge(r=R)) as run:
        merged = model(spectra()).logits
        states = model.encoder(spectra(), output_hidden_states=True).hidden_states
        trace = run.trace
    for blocks in range(1, 4):
        each_has_its_own(states[blocks], trace, blocks)
    if weighted:
        shares = model.layer_weights.softmax(0)
        pooled = sum(share * state for share, state in zip(shares, states, strict=True))
    else:
        pooled = states[-1]
    by_hand = model.classifier(model.projector(pooled).mean(1))
    torch.testing.assert_close(merged, by_hand, atol=1e-5, rtol=1e-5)
    assert (merged - host).abs().max() > 1e-3


class Around(nn.Module):
    """Like a module of Lightning: the model is a child, called by keyword."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


def picture_features(model: Any, layer: int | list[int]) -> Tensor:
    found = model.model.get_image_features(pixel_values=pixels(), vision_feature_layer=layer)
    return torch.stack(list(found.pooler_output if hasattr(found, "pooler_output") else found))


@pytest.mark.parametrize("layer", [-1, -2, 2, [1, -2]], ids=str)
@torch.no_grad()
def test_llava_asks_for_another_layer_at_the_call(layer: int | list[int]) -> None:
    model, inputs = llava()
    if isinstance(layer, list):  # the projector is as wide as the layers together
        config = hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**SIZES), text_config=hf.LlamaConfig(**LLAMA),
            image_token_index=IMAGE, vision_feature_layer=layer,
        )  # fmt: skip
        model = hf.LlavaForConditionalGeneration(config)
    wild(model)
    host = picture_features(model, layer)
    logits = model(**inputs, vision_feature_layer=layer).logits
    with turbovlm.applied(model, Merge(r=R)) as run:
        merged = picture_features(model, layer)
        assert model(**inputs, vision_feature_layer=layer).logits.shape == logits.shape
        assert not torch.allclose(
            model(**inputs, vision_feature_layer=layer).logits, logits, atol=1e-3
        )
        trace = run.trace
    assert merged.shape == host.shape
    if isinstance(layer, int):
        each_has_its_own(merged, trace, layer % (DEPTH + 1))


@pytest.mark.parametrize("around", [Around, nn.DataParallel, lambda m: Around(Around(m))])
@pytest.mark.parametrize("inside", [False, True], ids=["given whole", "given its tower"])
@torch.no_grad()
def test_llava_inside_another_module(around: Callable[[nn.Module], Any], inside: bool) -> None:
    model, inputs = llava()
    wild(model)
    host = model(**inputs).logits
    with turbovlm.applied(model, Merge(r=R)):
        expected = model(**inputs).logits
    whole = around(model)
    target = model.model.vision_tower if inside else whole
    turbovlm.apply(target, Merge(r=R))
    assert torch.equal(whole(**inputs).logits, expected)
    assert not torch.allclose(expected, host, atol=1e-3)
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 2
    turbovlm.remove(whole)
    assert torch.equal(whole(**inputs).logits, host)
    assert prompt(64).shape[1] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("build", "blocks"),
    [
        (lambda: wild(hf.ViTModel(hf.ViTConfig(**SIZES))), "layers"),
        (lambda: wild(hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES))), "encoder.layers"),
        (vit, "blocks"),
    ],
    ids=["vit", "clip", "timm"],
)
@torch.no_grad()
def test_blocks_cut_off_after_apply_are_named(build: Callable[[], Any], blocks: str) -> None:
    model = build()
    turbovlm.apply(model, Merge(r=R))
    holder, _, name = blocks.rpartition(".")
    parent = model.get_submodule(holder)
    setattr(
        parent,
        name,
        type(getattr(parent, name))(*list(getattr(parent, name))[:3])
        if isinstance(getattr(parent, name), nn.Sequential)
        else nn.ModuleList(list(getattr(parent, name))[:3]),
    )
    run = model.forward_features if blocks == "blocks" else model
    with pytest.raises(UnsupportedInput, match="after cutting blocks off"):
        run(pixels())
    turbovlm.remove(model)
    host = run(pixels())
    turbovlm.apply(model, Merge(r=R))
    merged = run(pixels())
    ours, theirs = (y if isinstance(y, Tensor) else y.last_hidden_state for y in (merged, host))
    assert ours.shape == theirs.shape
    assert not torch.allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("reads", ["before apply", "after apply"])
@torch.no_grad()
def test_hooks_on_blocks_and_on_the_tower(reads: str) -> None:
    model: Any = wild(hf.BlipForImageTextRetrieval(hf.BlipConfig(
        vision_config={**SIZES, "initializer_range": 0.02},
        text_config={
            "hidden_size": 48, "encoder_hidden_size": 48, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
            "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0,
        },
        projection_dim=16, image_text_hidden_size=16,
    )))  # fmt: skip
    tower = model.vision_model
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            seen[name] = out if isinstance(out, Tensor) else out.last_hidden_state

        return hook

    def hook() -> None:
        tower.encoder.layers[1].register_forward_hook(keep("block"))
        tower.register_forward_hook(keep("tower"))

    ids = torch.tensor([[5, 6, 7]] * 2)
    if reads == "before apply":
        hook()
    turbovlm.apply(model, Merge(r=R))
    with turbovlm.recording(model) as run:
        if reads == "after apply":
            # its reader attends over the tokens, so it was short before anybody looked
            assert model(ids, pixels(), use_itm_head=True)[1].shape[1] == 45
            hook()
        model(ids, pixels(), use_itm_head=True)
        trace = run.trace
    each_has_its_own(seen["block"], trace, 2)
    each_has_its_own(seen["tower"], trace, 4)
    merged = dict(seen)
    turbovlm.remove(model)
    model(ids, pixels(), use_itm_head=True)
    for name, value in seen.items():
        assert merged[name].shape == value.shape
        assert not torch.allclose(merged[name], value, atol=1e-3)
