"""Classifiers, embedders and captioners of transformers, by a local folder or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import ModelError, UnknownArchitecture, require
from turbovlm_workbench.checkpoint import cause
from turbovlm_workbench.load.loaded import Captioner, Classifier, Embedder
from turbovlm_workbench.load.prepare import Prepare, processor_prepare
from turbovlm_workbench.load.skeleton import NAMES
from turbovlm_workbench.paper import register_paper_models

CAPTION_TOKENS = 20
CAPTIONERS = {
    "blip": "BlipForConditionalGeneration",
    "blip-2": "Blip2ForConditionalGeneration",
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
    "upop-blip-captioner": "UPopCaptioner",
}
EMBEDDERS = {  # whatever runs on pixel values alone
    "vit": "ViTModel",
    "vit_msn": "ViTMSNModel",
    "deit": "DeiTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModel",
    "metaclip_2": "MetaClip2VisionModelWithProjection",
    "metaclip_2_vision_model": "MetaClip2VisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "aimv2_vision_model": "Aimv2VisionModel",
    "altclip_vision_model": "AltCLIPVisionModel",
    "chinese_clip_vision_model": "ChineseCLIPVisionModel",
    "internvl_vision": "InternVLVisionModel",
}
PAIRS = {  # an image and a text encoder, and no class of the former with its projection
    "aimv2": "Aimv2Model",
    "altclip": "AltCLIPModel",
    "chinese_clip": "ChineseCLIPModel",
}


class ImageSide(nn.Module):
    """The image tower of a model of `PAIRS` and its projection into the common space."""

    def __init__(self, pair: Any) -> None:
        super().__init__()
        self.vision_model = pair.vision_model
        self.visual_projection = pair.visual_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embeddings (B, C) of pixels (B, 3, H, W)."""
        return self.visual_projection(self.vision_model(pixel_values).pooler_output)


class Average(nn.Module):
    """A tower with neither a cls token nor a pooling head: its mean patch stands for the image."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embeddings (B, C) of pixels (B, 3, H, W)."""
        return self.tower(pixel_values).last_hidden_state.mean(dim=1)


def load_transformers(name: str, *, beams: int) -> Classifier | Embedder | Captioner:
    """A transformers classifier, embedder or captioner, by its configuration.

    Raises:
        ModelError: if a part of it cannot be found or has weights that are not in its files.
        UnknownArchitecture: if it is none of these.
        MissingExtra: if transformers or torchvision is not installed.
    """
    transformers = require("transformers", "hf")
    require("torchvision", "hf")
    register_paper_models()  # for UPopCaptioner
    config = pretrained(transformers.AutoConfig, name)
    kind = config.model_type
    built = (getattr(config, "architectures", None) or [""])[0]
    # "in": DeiT's ends with ForImageClassificationWithTeacher. SigLIP 2 takes packed patches.
    if "ForImageClassification" in built and kind != "siglip2":
        model = pretrained_model(transformers.AutoModelForImageClassification, name)
        return Classifier(model, pretrained_processor(name), name)
    if built == CAPTIONERS.get(kind):
        model = pretrained_model(getattr(transformers, built, transformers.AutoModel), name)
        return _captioner(model, name, beams)
    if kind in PAIRS:
        model = ImageSide(pretrained_model(getattr(transformers, PAIRS[kind]), name))
        return Embedder(model.eval(), pretrained_processor(name), name)
    if kind in EMBEDDERS:
        options: dict[str, Any] = {}
        if EMBEDDERS[kind].endswith("WithProjection"):
            # the tower alone would take the width of its own configuration
            config.vision_config.projection_dim = config.projection_dim
            options = {"config": config.vision_config}
        model = pretrained_model(getattr(transformers, EMBEDDERS[kind]), name, **options)
        if not getattr(model, "use_head", True):  # AIMv2 and SigLIP say so
            model = Average(model).eval()
        return Embedder(model, pretrained_processor(name), name)
    raise UnknownArchitecture(
        f"{name} is a {built or kind} ({kind}), which bench cannot run: it knows image "
        f"classifiers, {', '.join(CAPTIONERS.values())}, models that answer a prompt about an "
        f"image (`turbovlm models` lists those), and embedders of the kinds "
        f"{', '.join([*EMBEDDERS, *PAIRS])}; for others use turbovlm.apply in Python"
    )


def _captioner(model: Any, name: str, beams: int) -> Captioner:
    transformers = require("transformers", "hf")
    tokenizer = pretrained(transformers.AutoTokenizer, name)
    return Captioner(
        model,
        pretrained_processor(name),
        name,
        decode=lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True),
        options={"num_beams": beams, "max_new_tokens": CAPTION_TOKENS},
    )


def architecture(name: str) -> str:
    """The class that a model of transformers was saved from; its kind where that is not told.

    Raises:
        ModelError: if it has no configuration.
        MissingExtra: if transformers is not installed.
    """
    config = pretrained(require("transformers", "hf").AutoConfig, name)
    return (getattr(config, "architectures", None) or [config.model_type])[0]


def pretrained_processor(name: str) -> Prepare:
    """The image processor of a model.

    Raises:
        ModelError: if there is none.
    """
    transformers = require("transformers", "hf")
    return processor_prepare(pretrained(transformers.AutoImageProcessor, name))


def pretrained_model(kind: Any, name: str, **options: Any) -> Any:
    """A model in evaluation mode and float32, every weight of which comes from the checkpoint.

    Args:
        kind: a class of transformers.
        name: a local folder or a hub id.
        options: of ``from_pretrained``.

    Raises:
        ModelError: if it cannot be loaded or lacks weights.
    """
    # the default of transformers is the format of the files, which a CPU may only emulate
    options |= {"dtype": torch.float32, "output_loading_info": True}
    model, info = pretrained(kind, name, **options)
    missing = sorted(info["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        # A backbone saved without its pooling layer: embed by cls, not by random weights.
        model, info = pretrained(kind, name, **options, add_pooling_layer=False)
        missing = sorted(info["missing_keys"])
    if hasattr(model, "decoder"):
        # transformers gives an encoder beside a decoder a pooling layer that nothing reads
        missing = [key for key in missing if not key.startswith("encoder.pooler.")]
    if missing:
        raise ModelError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__} ({missing[0]}, ...): "
            "give a checkpoint that was saved from this kind of model"
        )
    return model.eval()


def pretrained(kind: Any, name: str, **options: Any) -> Any:
    """``kind.from_pretrained(name)``, with one kind of error and never remote code.

    Raises:
        ModelError: whatever the reason why it cannot be loaded.
    """
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # OSError, ValueError, and whatever a broken file leads to
        if Path(name).is_dir():
            fix = "is the folder complete, as save_pretrained writes it?"
        else:
            fix = f"give {NAMES}, or a hub id"
        what = kind.__name__.removeprefix("Auto")
        raise ModelError(f"cannot load {what} of {name!r} ({cause(error)}): {fix}") from error
