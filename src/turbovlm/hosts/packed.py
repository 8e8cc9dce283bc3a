"""Rows for the vision towers of transformers that lay the patches of all images in one sequence."""

from typing import Any

from turbovlm.plug.encoder.row import Packing, Row

_PIXTRAL = "transformers.models.pixtral.modeling_pixtral"
# no cls token; rotary tables along the sequence
_ALONG: dict[str, Any] = {"prefix": 0, "guide": "mean", "follow": ("position_embeddings",)}


def _row(package: str, block: str, tower: str, packed: Packing, example: str) -> Row:
    """Qwen's kind, which calls its children alike."""
    path = f"transformers.models.{package}.modeling_{package}"
    return Row(
        f"{path}.{block}",
        (f"{path}.{tower}",),
        attention=("attn", "norm1"),
        mlp=("mlp", "norm2"),
        **_ALONG,
        tables="attn.head_dim",
        packed=packed,
        example=example,
    )


ROWS = (
    _row(
        "qwen2_vl",
        "Qwen2VLVisionBlock",
        "Qwen2VisionTransformerPretrainedModel",
        Packing(),
        "Qwen/Qwen2-VL-7B-Instruct",
    ),
    _row(
        "qwen2_5_vl",
        "Qwen2_5_VLVisionBlock",
        "Qwen2_5_VisionTransformerPretrainedModel",
        Packing(whole="fullatt_block_indexes", window="window_size"),
        "Qwen/Qwen2.5-VL-7B-Instruct",
    ),
    _row(
        "qwen3_vl",
        "Qwen3VLVisionBlock",
        "Qwen3VLVisionModel",
        Packing(reads="deepstack_visual_indexes"),
        "Qwen/Qwen3-VL-8B-Instruct",
    ),
    _row(
        "qwen3_vl_moe",
        "Qwen3VLMoeVisionBlock",
        "Qwen3VLMoeVisionModel",
        Packing(reads="deepstack_visual_indexes"),
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
    ),
    _row(
        "qwen3_5",
        "Qwen3_5VisionBlock",
        "Qwen3_5VisionModel",
        Packing(),
        "Qwen/Qwen3.5-9B",
    ),
    _row(
        "qwen3_5_moe",
        "Qwen3_5MoeVisionBlock",
        "Qwen3_5MoeVisionModel",
        Packing(),
        "Qwen/Qwen3.5-35B-A3B",
    ),
    _row(
        "glm4v",
        "Glm4vVisionBlock",
        "Glm4vVisionModel",
        Packing(),
        "THUDM/GLM-4.1V-9B-Thinking",
    ),
    Row(
        f"{_PIXTRAL}.PixtralAttentionLayer",
        (f"{_PIXTRAL}.PixtralVisionModel",),
        attention=("attention", "attention_norm"),
        mlp=("feed_forward", "ffn_norm"),
        **_ALONG,
        tables="attention.head_dim",
        mask="attention_mask",
        packed=Packing(bounds=None, grid="image_sizes", side="patch_size", cell=None),
        example="mistral-community/pixtral-12b",
    ),
)
