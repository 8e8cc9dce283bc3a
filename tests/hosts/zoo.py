"""Small models with random weights, one or more per host row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip.transformer
import timm
import torch
import torchvision
import transformers as hf
from torch import Tensor, nn
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tests.reference.literal import Rotary

WIDTH, DEPTH, HEADS = 48, 4, 4
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "image_size": 64,
    "patch_size": 8,
}
DINO = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
INTERNVL: dict[str, Any] = SIZES | {
    "image_size": [64, 64],
    "patch_size": [8, 8],
    "use_qk_norm": True,
    "norm_type": "rms_norm",
}
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "sep_token_id": 2,
}
TIMM: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "num_classes": 10,
}


def pixels(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def words(batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 99, (batch, 40), generator=generator)


def spectra(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 16, 120, generator=torch.Generator().manual_seed(seed))


def padding(tokens: int, left: int) -> Tensor:
    """``(2, tokens)``: all of the first sample, the first ``left`` of the second."""
    real = torch.ones(2, tokens, dtype=torch.bool)
    real[1, left:] = False
    return real


@dataclass(frozen=True)
class Case:
    """One host: how to build it, and its output as one tensor.

    ``duplicates`` gives block arguments for 16 patch tokens that are equal in pairs; ``rotary``
    the tables of every block.
    """

    name: str
    build: Callable[[], nn.Module]
    run: Callable[[Any, Tensor], Tensor]
    prefix: int = 1
    guide: str = "cls"
    inputs: Callable[..., Tensor] = pixels
    real: Tensor | None = None
    rotary: Callable[[Any, Tensor], Sequence[Rotary]] | None = None
    duplicates: Callable[[], dict[str, Any]] = dict


def wild(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that errors show: freshly initialised models are almost linear, and
    BLIP's are constant (its default initializer_range is 1e-10)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2:
                std = 0.5 / p.shape[-1] ** 0.5 if p.dim() == 2 else 0.08
                p.copy_(torch.randn(p.shape, generator=generator) * std)
            elif "norm" not in name.lower() and "ln" not in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


def scaled(model: nn.Module, *names: str) -> nn.Module:
    """Layer scales that `wild` made small and random, back to a size that lets branches through."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(part in name for part in names):
                p.add_(0.7)
    return model


def _last(model: Any, x: Tensor) -> Tensor:
    return model(x).last_hidden_state


def _features(model: Any, x: Tensor) -> Tensor:
    return model.forward_features(x)


def _vit(**kwargs: Any) -> nn.Module:
    return scaled(wild(timm.models.vision_transformer.VisionTransformer(**TIMM | kwargs)), "gamma")


def _eva(**kwargs: Any) -> nn.Module:
    return scaled(wild(timm.models.eva.Eva(**TIMM | kwargs)), "gamma_")


def _torchvision() -> nn.Module:
    model = torchvision.models.VisionTransformer(64, 8, DEPTH, HEADS, WIDTH, 96, num_classes=10)
    return wild(model)


def _torchvision_run(model: Any, x: Tensor) -> Tensor:
    patches = model._process_input(x)
    return model.encoder(torch.cat([model.class_token.expand(len(x), -1, -1), patches], 1))


def _open_clip(**kwargs: Any) -> nn.Module:
    model = open_clip.transformer.VisionTransformer(
        64, 8, WIDTH, DEPTH, HEADS, 2.0, ls_init_value=0.7, output_tokens=True, **kwargs
    )
    return scaled(wild(model), "ls_")


def _siglip2_run(model: Any, x: Tensor) -> Tensor:
    patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(len(x), 64, 192)
    shapes = torch.tensor([[8, 8], [6, 7]])
    return model(patches, padding(64, 42).long(), shapes).last_hidden_state


def _grid_run(model: Any, x: Tensor) -> Tensor:
    """Idefics: the second picture fills five of the eight rows of patches."""
    return model(x, patch_attention_mask=padding(64, 40).view(2, 8, 8)).last_hidden_state


def _text_run(model: Any, x: Tensor) -> Tensor:
    return model(input_ids=x, attention_mask=padding(40, 23).long()).last_hidden_state


def dinov3_tables(model: Any, x: Tensor) -> list[Rotary]:
    cos, sin = model.rope_embeddings(x)
    return [Rotary(cos[None], sin[None], half=True)] * DEPTH


def _timm_tables(half: bool) -> Callable[[Any, Tensor], list[Rotary]]:
    def tables(model: Any, x: Tensor) -> list[Rotary]:
        table = model.rope.get_embed()
        each = list(table) if table.dim() == 4 else [table[None]] * DEPTH
        return [Rotary(t.chunk(2, -1)[1], t.chunk(2, -1)[0], half) for t in each]

    return tables


def _pairs(width: int) -> Tensor:
    noise = torch.randn(8, width, generator=torch.Generator().manual_seed(5))
    return noise.repeat_interleave(2, 0)


def dinov3_pairs() -> dict[str, Any]:
    return {"position_embeddings": (_pairs(12), _pairs(12))}


def _timm_pairs() -> dict[str, Any]:
    return {"rope": _pairs(24)}


NO_CLS: dict[str, Any] = {"prefix": 0, "guide": "mean"}
VISION = (
    Case("vit", lambda: wild(hf.ViTModel(hf.ViTConfig(**SIZES))), _last),
    Case("vit_msn", lambda: wild(hf.ViTMSNModel(hf.ViTMSNConfig(**SIZES))), _last),
    Case("deit", lambda: wild(hf.DeiTModel(hf.DeiTConfig(**SIZES))), _last, prefix=2),
    Case(
        "dinov2",
        lambda: scaled(wild(hf.Dinov2Model(hf.Dinov2Config(**DINO))), "lambda"),
        _last,
    ),
    Case(
        "dinov2_with_registers",
        lambda: scaled(
            wild(
                hf.Dinov2WithRegistersModel(
                    hf.Dinov2WithRegistersConfig(**DINO, num_register_tokens=3)
                )
            ),
            "lambda",
        ),
        _last,
        prefix=4,
    ),
    Case(
        "dinov3",
        lambda: scaled(
            wild(
                hf.DINOv3ViTModel(
                    hf.DINOv3ViTConfig(**SIZES, num_register_tokens=4, pos_embed_rescale=None)
                )
            ),
            "lambda",
        ),
        _last,
        prefix=5,
        rotary=dinov3_tables,
        duplicates=dinov3_pairs,
    ),
    Case("clip", lambda: wild(hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES))), _last),
    Case(
        "metaclip2",
        lambda: wild(hf.MetaClip2VisionModel(hf.MetaClip2VisionConfig(**SIZES))),
        _last,
    ),
    Case(
        "altclip",
        lambda: wild(hf.AltCLIPVisionModel(hf.AltCLIPVisionConfig(**SIZES))),
        _last,
    ),
    Case(
        "chinese_clip",
        lambda: wild(hf.ChineseCLIPVisionModel(hf.ChineseCLIPVisionConfig(**SIZES))),
        _last,
    ),
    Case(
        "siglip",
        lambda: wild(hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZES))),
        _last,
        **NO_CLS,
    ),
    Case(
        "siglip2",
        lambda: wild(
            hf.Siglip2VisionModel(
                hf.Siglip2VisionConfig(
                    **{k: v for k, v in SIZES.items() if k != "image_size"}, num_patches=64
                )
            )
        ),
        _siglip2_run,
        real=padding(64, 42),
        **NO_CLS,
    ),
    Case(
        "aimv2",
        lambda: wild(hf.Aimv2VisionModel(hf.Aimv2VisionConfig(**SIZES))),
        _last,
        **NO_CLS,
    ),
    Case("blip", lambda: wild(hf.BlipVisionModel(hf.BlipVisionConfig(**SIZES))), _last),
    Case("blip2", lambda: wild(hf.Blip2VisionModel(hf.Blip2VisionConfig(**SIZES))), _last),
    Case(
        "instructblip",
        lambda: wild(hf.InstructBlipVisionModel(hf.InstructBlipVisionConfig(**SIZES))),
        _last,
    ),
    Case(
        "internvl",
        lambda: scaled(
            wild(hf.InternVLVisionModel(hf.InternVLVisionConfig(**INTERNVL))),
            "lambda",
        ),
        _last,
    ),
    Case(
        "idefics2",
        lambda: wild(Idefics2VisionTransformer(Idefics2VisionConfig(**SIZES))),
        _grid_run,
        real=padding(64, 40),
        **NO_CLS,
    ),
    Case(
        "idefics3",
        lambda: wild(Idefics3VisionTransformer(Idefics3VisionConfig(**SIZES))),
        _grid_run,
        real=padding(64, 40),
        **NO_CLS,
    ),
    Case(
        "smolvlm",
        lambda: wild(SmolVLMVisionTransformer(SmolVLMVisionConfig(**SIZES))),
        _grid_run,
        real=padding(64, 40),
        **NO_CLS,
    ),
    Case(
        "whisper",
        lambda: wild(
            WhisperEncoder(
                hf.WhisperConfig(
                    d_model=WIDTH,
                    encoder_layers=DEPTH,
                    encoder_attention_heads=HEADS,
                    encoder_ffn_dim=96,
                    max_source_positions=60,
                    num_mel_bins=16,
                )
            )
        ),
        _last,
        inputs=spectra,
        **NO_CLS,
    ),
    Case("timm", lambda: _vit(init_values=0.7), _features),
    Case("timm_registers", lambda: _vit(reg_tokens=4, qk_norm=True), _features, prefix=5),
    Case(
        "timm_average",
        lambda: _vit(class_token=False, global_pool="avg"),
        _features,
        **NO_CLS,
    ),
    Case(
        "timm_siglip",
        lambda: _vit(class_token=False, global_pool="map"),
        _features,
        **NO_CLS,
    ),
    Case(
        "timm_respost",
        lambda: _vit(block_fn=timm.models.vision_transformer.ResPostBlock, init_values=0.7),
        _features,
    ),
    Case("timm_eva_clip", lambda: _eva(global_pool="token", swiglu_mlp=True), _features),
    Case(
        "timm_eva02",
        lambda: _eva(use_rot_pos_emb=True, init_values=0.7, swiglu_mlp=True, scale_mlp=True),
        _features,
        rotary=_timm_tables(half=False),
        duplicates=_timm_pairs,
    ),
    Case(
        "timm_dinov3",
        lambda: _eva(
            use_rot_pos_emb=True,
            use_abs_pos_emb=False,
            rope_type="dinov3",
            rope_rotate_half=True,
            num_reg_tokens=4,
            init_values=0.7,
            global_pool="token",
        ),
        _features,
        prefix=5,
        rotary=_timm_tables(half=True),
        duplicates=_timm_pairs,
    ),
    Case(
        "timm_rope_mixed",
        lambda: _eva(
            use_rot_pos_emb=True, rope_type="mixed", attn_type="rope", global_pool="token"
        ),
        _features,
        rotary=_timm_tables(half=False),
        duplicates=_timm_pairs,
    ),
    Case(
        "timm_eva_postnorm",
        lambda: _eva(use_post_norm=True, global_pool="token"),
        _features,
    ),
    Case("torchvision", _torchvision, _torchvision_run),
    Case("open_clip", _open_clip, lambda m, x: m.transformer(m._embeds(x))),
    Case(
        "open_clip_custom",
        lambda: _open_clip(block_type="custom", scale_attn=True, qk_norm=True),
        lambda m, x: m.transformer(m._embeds(x)),
    ),
)
LANGUAGE = tuple(
    Case(name, build, _text_run, inputs=words, real=padding(40, 23))
    for name, build in (
        ("bert", lambda: wild(hf.BertModel(hf.BertConfig(**TEXT)))),
        ("roberta", lambda: wild(hf.RobertaModel(hf.RobertaConfig(**TEXT)))),
        ("xlm_roberta", lambda: wild(hf.XLMRobertaModel(hf.XLMRobertaConfig(**TEXT)))),
        ("blip_text", lambda: wild(hf.BlipTextModel(hf.BlipTextConfig(**TEXT)))),
    )
)
CASES = VISION + LANGUAGE
