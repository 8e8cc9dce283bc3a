"""Rows for transformers. Blocks of BLIP, CLIP and SigLIP share their children's names."""

from turbovlm.plug.row import Row

_MODELS = "transformers.models"
_ATTENTION = ("self_attn", "layer_norm1")
_MLP = ("mlp", "layer_norm2")

ROWS = (
    Row(
        block=f"{_MODELS}.vit.modeling_vit.ViTLayer",
        towers=(f"{_MODELS}.vit.modeling_vit.ViTModel",),
        attention=("attention", "layernorm_before"),
        mlp=("mlp", "layernorm_after"),
        example="google/vit-base-patch16-224",
    ),
    Row(
        block=f"{_MODELS}.deit.modeling_deit.DeiTLayer",
        towers=(f"{_MODELS}.deit.modeling_deit.DeiTModel",),
        attention=("attention", "layernorm_before"),
        mlp=("mlp", "layernorm_after"),
        prefix=2,  # cls and distillation token
        example="facebook/deit-base-distilled-patch16-224",
    ),
    Row(
        block=f"{_MODELS}.dinov2.modeling_dinov2.Dinov2Layer",
        towers=(f"{_MODELS}.dinov2.modeling_dinov2.Dinov2Model",),
        attention=("attention", "norm1"),
        mlp=("mlp", "norm2"),
        restore=True,  # its classifier averages the patch tokens
        example="facebook/dinov2-base",
    ),
    Row(
        block=f"{_MODELS}.clip.modeling_clip.CLIPEncoderLayer",
        towers=(f"{_MODELS}.clip.modeling_clip.CLIPVisionModel",),
        attention=_ATTENTION,
        mlp=_MLP,
        restore=True,  # read by token count or average (LLaVA, its own classifier)
        example="openai/clip-vit-base-patch32",
    ),
    Row(
        block=f"{_MODELS}.siglip.modeling_siglip.SiglipEncoderLayer",
        towers=(f"{_MODELS}.siglip.modeling_siglip.SiglipVisionModel",),
        attention=_ATTENTION,
        mlp=_MLP,
        prefix=0,
        guide="mean",
        restore=True,  # its pooling head attends over all patch tokens
        example="google/siglip-base-patch16-224",
    ),
    Row(
        block=f"{_MODELS}.blip.modeling_blip.BlipEncoderLayer",
        towers=(f"{_MODELS}.blip.modeling_blip.BlipVisionModel",),
        attention=_ATTENTION,
        mlp=_MLP,
        example="Salesforce/blip-image-captioning-base",
    ),
    Row(
        block=f"{_MODELS}.blip_2.modeling_blip_2.Blip2EncoderLayer",
        towers=(f"{_MODELS}.blip_2.modeling_blip_2.Blip2VisionModel",),
        attention=_ATTENTION,
        mlp=_MLP,
        example="Salesforce/blip2-opt-2.7b",
    ),
)
