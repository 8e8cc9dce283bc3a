"""Rows for timm."""

from typing import Any

from turbovlm.plug.encoder.row import Row

_TOWER: dict[str, Any] = {
    "attention": ("attn", "norm1"),
    "mlp": ("mlp", "norm2"),
    "prefix": "num_prefix_tokens",
    "cls": "cls_token",
    "pool": "global_pool",  # average and attention pooling read all patch tokens
    "entries": ("forward_features",),
    "mask": "attn_mask",
}
_VIT = ("timm.models.vision_transformer.VisionTransformer",)
_EVA = ("timm.models.eva.Eva",)

ROWS = (
    Row(
        "timm.models.vision_transformer.Block",
        _VIT,
        **_TOWER,
        example="vit_base_patch16_224",
    ),
    Row(  # norms after each branch, inside the residual: a muted norm is a muted branch
        "timm.models.vision_transformer.ResPostBlock",
        _VIT,
        **_TOWER,
        example="vit_base_patch16_rpn_224",
    ),
    Row(
        "timm.models.eva.EvaBlock",
        _EVA,
        **_TOWER,
        follow=("rope",),
        example="eva02_base_patch14_448",
    ),
    Row(
        "timm.models.eva.EvaBlockPostNorm",
        _EVA,
        **_TOWER,
        follow=("rope",),
        example="eva02_enormous_patch14_clip_224",
    ),
)
