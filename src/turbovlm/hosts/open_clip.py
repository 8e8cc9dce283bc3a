"""Rows for open_clip's own vision transformer; its EVA and SigLIP towers are timm's.

Average and attention pooling and CoCa's text decoder read all tokens.
"""

from turbovlm.plug.encoder.row import Row

_TOWER = ("open_clip.transformer.VisionTransformer",)

ROWS = (
    Row(
        "open_clip.transformer.ResidualAttentionBlock",
        _TOWER,
        attention=("attn", "ln_1"),
        mlp=("mlp", "ln_2"),
        example="ViT-B-32",
    ),
    Row(
        "open_clip.transformer.CustomResidualAttentionBlock",
        _TOWER,
        attention=("attn", "ln_1", "ln_attn"),
        mlp=("mlp", "ln_2"),
        example="ViT-B-16-quickgelu",
    ),
)
