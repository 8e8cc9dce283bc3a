"""Rows for the vision-language models of transformers: where fewer visual tokens are handed over.

Every model has an outer class that scatters the projected features into the embedded prompt and
calls the language model; what differs is how the tokens of an image lie in the picture.
"""

from __future__ import annotations

from typing import Any

from turbovlm.plug.language.row import LanguageRefusal, LanguageRow

_HF = "transformers.models"
_BOTH = {"image": "image_token_id", "video": "video_token_id"}
# Qwen's kind: grids in patches, of which the merger joins a square
_GRID: dict[str, Any] = {"layout": "grid", "patch": ("config.vision_config.spatial_merge_size",)}
# sizes in pixels: patches, of which Mistral's projector joins a square
_PATCH = "config.vision_config.patch_size"


def _row(package: str, name: str, **fields: Any) -> LanguageRow:
    path = f"{_HF}.{package}.modeling_{package}.{name}"
    return LanguageRow(f"{path}Model", (f"{path}ForConditionalGeneration",), **fields)


ROWS = (
    # Pixtral in its LLaVA form has sizes as well
    _row(
        "llava",
        "Llava",
        layout="sizes",
        patch=(_PATCH,),
        towers=("CLIPVisionModel", "PixtralVisionModel"),
        example="llava-hf/llava-1.5-7b-hf",
    ),
    _row(
        "llava_next",
        "LlavaNext",
        layout="packed",
        towers=("CLIPVisionModel",),
        example="llava-hf/llava-v1.6-mistral-7b-hf",
    ),
    _row(
        "llava_onevision",
        "LlavaOnevision",
        layout="packed",
        tokens=_BOTH,
        towers=("SiglipVisionModel",),
        example="llava-hf/llava-onevision-qwen2-7b-ov-hf",
    ),
    _row(
        "qwen2_vl",
        "Qwen2VL",
        **_GRID,
        tokens=_BOTH,
        towers=("Qwen2VisionTransformerPretrainedModel",),
        example="Qwen/Qwen2-VL-7B-Instruct",
    ),
    _row(
        "qwen2_5_vl",
        "Qwen2_5_VL",
        **_GRID,
        tokens=_BOTH,
        towers=("Qwen2_5_VisionTransformerPretrainedModel",),
        example="Qwen/Qwen2.5-VL-7B-Instruct",
    ),
    _row(
        "qwen3_vl",
        "Qwen3VL",
        **_GRID,
        tokens=_BOTH,
        towers=("Qwen3VLVisionModel",),
        example="Qwen/Qwen3-VL-8B-Instruct",
    ),
    _row(
        "qwen3_vl_moe",
        "Qwen3VLMoe",
        **_GRID,
        tokens=_BOTH,
        towers=("Qwen3VLMoeVisionModel",),
        example="Qwen/Qwen3-VL-30B-A3B-Instruct",
    ),
    _row(
        "qwen3_5",
        "Qwen3_5",
        **_GRID,
        tokens=_BOTH,
        towers=("Qwen3_5VisionModel",),
        example="Qwen/Qwen3.5-9B",
    ),
    _row(
        "qwen3_5_moe",
        "Qwen3_5Moe",
        **_GRID,
        tokens=_BOTH,
        towers=("Qwen3_5MoeVisionModel",),
        example="Qwen/Qwen3.5-35B-A3B",
    ),
    _row(
        "internvl",
        "InternVL",
        layout="tiles",
        towers=("InternVLVisionModel",),
        example="OpenGVLab/InternVL3-8B-hf",
    ),
    _row(
        "smolvlm",
        "SmolVLM",
        language="text_model",
        layout="runs",  # tiles with text between them
        towers=("SmolVLMVisionTransformer",),
        example="HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    ),
    _row(
        "idefics2",
        "Idefics2",
        language="text_model",
        layout="latents",
        towers=("Idefics2VisionTransformer",),
        example="HuggingFaceM4/idefics2-8b",
    ),
    _row(
        "idefics3",
        "Idefics3",
        language="text_model",
        layout="runs",
        towers=("Idefics3VisionTransformer",),
        example="HuggingFaceM4/Idefics3-8B-Llama3",
    ),
    _row(
        "paligemma",
        "PaliGemma",
        towers=("SiglipVisionModel",),
        example="google/paligemma2-3b-mix-224",
    ),
    _row("gemma3", "Gemma3", towers=("SiglipVisionModel",), example="google/gemma-3-4b-it"),
    _row(
        "mistral3",
        "Mistral3",
        layout="sizes",
        patch=(_PATCH, "config.spatial_merge_size"),
        towers=("PixtralVisionModel",),
        example="mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    ),
    _row(
        "glm4v",
        "Glm4v",
        **_GRID,
        # frames of a video have the image's placeholder
        tokens={"image": "image_token_id", "video": "image_token_id"},
        towers=("Glm4vVisionModel",),
        example="THUDM/GLM-4.1V-9B-Thinking",
    ),
)

REFUSALS = (
    LanguageRefusal(
        "its language model is given 32 queries an image, which are few already; "
        "turbovlm.Merge makes its vision tower faster",
        (
            f"{_HF}.blip_2.modeling_blip_2.Blip2Model",
            f"{_HF}.blip_2.modeling_blip_2.Blip2ForConditionalGeneration",
            f"{_HF}.instructblip.modeling_instructblip.InstructBlipModel",
            f"{_HF}.instructblip.modeling_instructblip.InstructBlipForConditionalGeneration",
            f"{_HF}.instructblipvideo.modeling_instructblipvideo.InstructBlipVideoModel",
            f"{_HF}.instructblipvideo.modeling_instructblipvideo."
            "InstructBlipVideoForConditionalGeneration",
        ),
    ),
)
