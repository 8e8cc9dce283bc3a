"""Rows for torchvision: vit_b_16, vit_l_16, vit_h_14 (SWAG) and their relatives."""

from turbovlm.plug.encoder.row import Row

ROWS = (
    Row(
        "torchvision.models.vision_transformer.EncoderBlock",
        ("torchvision.models.vision_transformer.VisionTransformer",),
        attention=("self_attention", "ln_1"),
        mlp=("mlp", "ln_2"),
        reads="cls",
        example="vit_l_16",
    ),
)
