"""Rows for timm."""

from turbovlm.plug.row import Row

ROWS = (
    Row(
        block="timm.models.vision_transformer.Block",
        towers=("timm.models.vision_transformer.VisionTransformer",),
        attention=("attn", "norm1"),
        mlp=("mlp", "norm2"),
        prefix="num_prefix_tokens",
        cls="cls_token",
        pool="global_pool",  # average and attention pooling read all patch tokens
        example="vit_base_patch16_224",
    ),
)
