"""Rows for the vision towers of transformers, and for Whisper's encoder.

The children of a block come under few sets of names; what differs is what reads the tower. All
positions are given back unless a reader is known to do with fewer.
"""

from collections.abc import Mapping
from typing import Any

from turbovlm.plug.encoder.row import Reads, Row

_CLIP: dict[str, Any] = {"attention": ("self_attn", "layer_norm1"), "mlp": ("mlp", "layer_norm2")}
_VIT: dict[str, Any] = {
    "attention": ("attention", "layernorm_before"),
    "mlp": ("mlp", "layernorm_after"),
}
_DINO: dict[str, Any] = {"attention": ("attention", "norm1"), "mlp": ("mlp", "norm2")}
_ADDING: dict[str, Any] = {  # its last child adds the residual
    "attention": ("attention", "layernorm_before"),
    "mlp": ("output", "intermediate", "layernorm_after"),
    "mlp_adds": True,
}
_PATCHES: dict[str, Any] = {"prefix": 0, "guide": "mean"}  # no cls token
_MASKED: dict[str, Any] = {"padding": ("attention_mask",)}
_PADDED: dict[str, Any] = {"padding": ("patch_attention_mask",), **_PATCHES}


def _readers(package: str, reads: Reads, *names: str) -> dict[str, Reads]:
    return {f"transformers.models.{package}.modeling_{package}.{name}": reads for name in names}


_AROUND: dict[str, Reads] = {  # models that take any of these encoders
    **_readers("vision_encoder_decoder", "tokens", "VisionEncoderDecoderModel"),
    **_readers("vision_text_dual_encoder", "pooled", "VisionTextDualEncoderModel"),
}


def _row(
    package: str, block: str, *towers: str, readers: Mapping[str, Reads] = {}, **fields: Any
) -> Row:
    path = f"transformers.models.{package}.modeling_{package}"
    return Row(
        f"{path}.{block}",
        tuple(f"{path}.{tower}" for tower in towers),
        readers={**_AROUND, **readers},
        mask="attention_mask",
        **fields,
    )


ROWS = (
    _row(
        "vit",
        "ViTLayer",
        "ViTModel",
        **_VIT,
        readers=_readers("vit", "cls", "ViTForImageClassification"),
        **_MASKED,
        example="google/vit-base-patch16-224",
    ),
    _row(
        "vit_msn",
        "ViTMSNLayer",
        "ViTMSNModel",
        **_VIT,
        **_MASKED,
        readers=_readers("vit_msn", "cls", "ViTMSNForImageClassification"),
        example="facebook/vit-msn-base",
    ),
    _row(
        "deit",
        "DeiTLayer",
        "DeiTModel",
        **_VIT,
        prefix=2,  # cls and distillation token
        readers=_readers(
            "deit", "cls", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"
        ),
        **_MASKED,
        example="facebook/deit-base-distilled-patch16-224",
    ),
    _row(
        "dinov2",
        "Dinov2Layer",
        "Dinov2Model",
        "Dinov2Backbone",
        **_DINO,
        **_MASKED,
        example="facebook/dinov2-base",
    ),
    _row(
        "dinov2_with_registers",
        "Dinov2WithRegistersLayer",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersBackbone",
        **_DINO,
        **_MASKED,
        prefix=(1, "config.num_register_tokens"),
        example="facebook/dinov2-with-registers-base",
    ),
    _row(
        "dinov3_vit",
        "DINOv3ViTLayer",
        "DINOv3ViTModel",
        "DINOv3ViTBackbone",
        **_DINO,
        prefix=(1, "config.num_register_tokens"),
        follow=("position_embeddings",),
        tables="attention.head_dim",
        example="facebook/dinov3-vitb16-pretrain-lvd1689m",
    ),
    _row(
        "ijepa",
        "IJepaLayer",
        "IJepaModel",
        **_VIT,
        **_PATCHES,
        **_MASKED,
        example="facebook/ijepa_vith14_1k",
    ),
    _row(  # patches come shuffled, without the masked ones; the decoder puts them back in order
        "vit_mae",
        "ViTMAELayer",
        "ViTMAEModel",
        **_VIT,
        **_MASKED,
        example="facebook/vit-mae-base",
    ),
    _row(
        "videomae",
        "VideoMAELayer",
        "VideoMAEModel",
        **_ADDING,
        **_PATCHES,
        example="MCG-NJU/videomae-base",
    ),
    _row(
        "dpt",
        "DPTViTLayer",
        "DPTModel",
        **_ADDING,
        example="Intel/dpt-large",
    ),
    _row(
        "clip",
        "CLIPEncoderLayer",
        "CLIPVisionModel",
        **_CLIP,
        readers=_readers("clip", "pooled", "CLIPModel", "CLIPVisionModelWithProjection"),
        example="openai/clip-vit-base-patch32",
    ),
    _row(
        "metaclip_2",
        "MetaClip2EncoderLayer",
        "MetaClip2VisionModel",
        **_CLIP,
        readers=_readers(
            "metaclip_2", "pooled", "MetaClip2Model", "MetaClip2VisionModelWithProjection"
        ),
        example="facebook/metaclip-2-worldwide-huge-quickgelu",
    ),
    _row(
        "altclip",
        "AltCLIPEncoderLayer",
        "AltCLIPVisionModel",
        **_CLIP,
        readers=_readers("altclip", "pooled", "AltCLIPModel"),
        example="BAAI/AltCLIP",
    ),
    _row(
        "chinese_clip",
        "ChineseCLIPVisionLayer",
        "ChineseCLIPVisionModel",
        **_CLIP,
        readers=_readers("chinese_clip", "pooled", "ChineseCLIPModel"),
        example="OFA-Sys/chinese-clip-vit-base-patch16",
    ),
    _row(
        "siglip",
        "SiglipEncoderLayer",
        "SiglipVisionModel",
        **_CLIP,
        **_PATCHES,
        example="google/siglip-base-patch16-224",
    ),
    _row(
        "siglip2",
        "Siglip2EncoderLayer",
        "Siglip2VisionModel",
        **_CLIP,
        **_PATCHES,
        padding=("pixel_attention_mask",),
        example="google/siglip2-base-patch16-naflex",
    ),
    _row(
        "aimv2",
        "Aimv2EncoderLayer",
        "Aimv2VisionModel",
        attention=("attention", "rms_norm1"),
        mlp=("ffn", "rms_norm2"),
        **_PATCHES,
        example="apple/aimv2-large-patch14-224",
    ),
    _row(
        "blip",
        "BlipEncoderLayer",
        "BlipVisionModel",
        **_CLIP,
        readers={
            **_readers("blip", "pooled", "BlipModel"),
            **_readers(
                "blip",
                "tokens",
                "BlipForConditionalGeneration",
                "BlipForQuestionAnswering",
                "BlipForImageTextRetrieval",
            ),
        },
        example="Salesforce/blip-image-captioning-base",
    ),
    _row(
        "blip_2",
        "Blip2EncoderLayer",
        "Blip2VisionModel",
        **_CLIP,
        readers=_readers(
            "blip_2",
            "tokens",
            "Blip2Model",
            "Blip2ForConditionalGeneration",
            "Blip2ForImageTextRetrieval",
            "Blip2VisionModelWithProjection",
        ),
        example="Salesforce/blip2-opt-2.7b",
    ),
    _row(
        "instructblip",
        "InstructBlipEncoderLayer",
        "InstructBlipVisionModel",
        **_CLIP,
        readers=_readers(
            "instructblip", "tokens", "InstructBlipModel", "InstructBlipForConditionalGeneration"
        ),
        example="Salesforce/instructblip-vicuna-7b",
    ),
    _row(
        "instructblipvideo",
        "InstructBlipVideoEncoderLayer",
        "InstructBlipVideoVisionModel",
        **_CLIP,
        readers=_readers(
            "instructblipvideo",
            "tokens",
            "InstructBlipVideoModel",
            "InstructBlipVideoForConditionalGeneration",
        ),
        example="Salesforce/instructblip-vicuna-7b",
    ),
    _row(
        "kosmos2",
        "Kosmos2VisionEncoderLayer",
        "Kosmos2VisionTransformer",
        **_CLIP,
        readers=_readers("kosmos2", "tokens", "Kosmos2Model", "Kosmos2ForConditionalGeneration"),
        example="microsoft/kosmos-2-patch14-224",
    ),
    _row(
        "janus",
        "JanusVisionEncoderLayer",
        "JanusVisionModel",
        **_CLIP,
        **_PATCHES,
        example="deepseek-community/Janus-Pro-1B",
    ),
    _row(
        "ovis2",
        "Ovis2VisionEncoderLayer",
        "Ovis2VisionModel",
        "Ovis2VisionTransformer",
        attention=("attention", "rms_norm1"),
        mlp=("ffn", "rms_norm2"),
        **_PATCHES,
        example="thisisiron/Ovis2-1B-hf",
    ),
    _row(
        "internvl",
        "InternVLVisionLayer",
        "InternVLVisionModel",
        **_VIT,
        example="OpenGVLab/InternVL3-1B-hf",
    ),
    _row(
        "idefics2",
        "Idefics2EncoderLayer",
        "Idefics2VisionTransformer",
        **_CLIP,
        **_PADDED,
        example="HuggingFaceM4/idefics2-8b",
    ),
    _row(
        "idefics3",
        "Idefics3EncoderLayer",
        "Idefics3VisionTransformer",
        **_CLIP,
        **_PADDED,
        example="HuggingFaceM4/Idefics3-8B-Llama3",
    ),
    _row(
        "smolvlm",
        "SmolVLMEncoderLayer",
        "SmolVLMVisionTransformer",
        **_CLIP,
        **_PADDED,
        example="HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    ),
    _row(
        "whisper",
        "WhisperEncoderLayer",
        "WhisperEncoder",
        attention=("self_attn", "self_attn_layer_norm"),
        mlp=("fc2", "fc1", "final_layer_norm"),
        **_PATCHES,
        modality="audio",
        readers=_readers("whisper", "tokens", "WhisperModel", "WhisperForConditionalGeneration"),
        example="openai/whisper-base",
    ),
    _row(
        "audio_spectrogram_transformer",
        "ASTLayer",
        "ASTModel",
        **_VIT,
        **_MASKED,
        prefix=2,  # cls and distillation token
        modality="audio",
        readers=_readers("audio_spectrogram_transformer", "cls", "ASTForAudioClassification"),
        example="MIT/ast-finetuned-audioset-10-10-0.4593",
    ),
)
