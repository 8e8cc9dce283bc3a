"""From a name on the command line to a loaded model with its task."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import torch

from turbovlm.errors import ConfigError, ModelError, UnknownArchitecture, require
from turbovlm.models.checkpoint import cause, load_strictly, read_weights
from turbovlm.tasks.base import Task
from turbovlm.tasks.caption import Caption
from turbovlm.tasks.classify import Classify
from turbovlm.tasks.embed import Embed
from turbovlm.tasks.images import check_labels
from turbovlm.tasks.prepare import processor_prepare, timm_prepare

TIMM = "timm:"
CAPTION_TOKENS = 20
BEAMS = 3  # the paper's, and BLIP's own, setting for captions

CAPTIONERS = {
    "blip": "BlipForConditionalGeneration",
    "blip-2": "Blip2ForConditionalGeneration",
}
EMBEDDERS = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "vit": "ViTModel",
    "deit": "DeiTModel",
    "dinov2": "Dinov2Model",
}


def load(name: str, weights: str | Path | None = None, *, beams: int = BEAMS) -> Task[Any]:
    """Load a model in evaluation mode, float32, on the CPU.

    Args:
        name: ``timm:NAME``, a local folder, or a hub id of a transformers model.
        weights: for timm, a local checkpoint to load instead of the published one.
        beams: of a captioner's beam search; 1 is greedy.

    Raises:
        ModelError: if it cannot be found or its weights do not fit.
        UnknownArchitecture: if it is none of the supported kinds.
        MissingExtra: if timm or transformers is not installed.
        ConfigError: for a combination of arguments that means nothing.
    """
    if beams < 1:
        raise ConfigError(f"--beams must be at least 1, got {beams}")
    if name.startswith(TIMM):
        return load_timm(name.removeprefix(TIMM), weights)
    if weights is not None:
        raise ConfigError("--weights goes with timm:NAME; a transformers folder brings its own")
    return load_transformers(name, beams=beams)


def with_labels(task: Task[Any], labels: tuple[int, ...] | None) -> Task[Any]:
    """The same task, scored against ``labels`` (one per image, in order) where they are given.

    Raises:
        ConfigError: if the model is no classifier.
        InputError: for a label that the model has no class for.
    """
    if labels is None:
        return task
    if not isinstance(task, Classify):
        raise ConfigError(
            f"--labels is for classifiers, and {task.name} does {task.kind}: leave it out"
        )
    model: Any = task.model
    classes = getattr(model, "num_classes", None)
    check_labels(labels, model.config.num_labels if classes is None else classes)
    return dataclasses.replace(task, labels=labels)


def load_timm(name: str, weights: str | Path | None = None) -> Task[Any]:
    """A timm classifier, or an embedder where the architecture has no classes."""
    timm = require("timm", "timm")
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise ModelError(f"timm has no model {name!r}: {hint}")
    if weights is None:
        try:
            model = timm.create_model(name, pretrained=True)
        except Exception as error:  # timm passes on whatever the download raised
            raise ModelError(
                f"cannot get the weights of timm:{name} ({cause(error)}): give a local file "
                "with --weights, or check the connection"
            ) from error
    else:
        state = read_weights(Path(weights))
        model = timm.create_model(name, pretrained=False)
        _match_classes(model, state)
        load_strictly(model, state, Path(weights), f"timm:{name}")
    prepare, title = timm_prepare(model), TIMM + name
    if getattr(model, "num_classes", 0):
        return Classify(model.eval(), prepare, title)
    return Embed(model.eval(), prepare, title)


def load_transformers(name: str, *, beams: int = BEAMS) -> Task[Any]:
    """A transformers classifier, embedder or captioner, by its configuration."""
    transformers = require("transformers", "hf")
    require("torchvision", "hf")
    config = _pretrained(transformers.AutoConfig, name)
    kind = config.model_type
    built = (getattr(config, "architectures", None) or [""])[0]
    if built.endswith("ForImageClassification"):
        model = _model(transformers.AutoModelForImageClassification, name)
        return Classify(model, _processor(name), name)
    if built == CAPTIONERS.get(kind):
        return _captioner(_model(getattr(transformers, built), name), name, beams)
    if kind in EMBEDDERS:
        options: dict[str, Any] = {}
        if kind == "clip":  # the tower alone would take the width of its own configuration
            config.vision_config.projection_dim = config.projection_dim
            options = {"config": config.vision_config}
        model = _model(getattr(transformers, EMBEDDERS[kind]), name, **options)
        return Embed(model, _processor(name), name)
    raise UnknownArchitecture(
        f"{name} is a {built or kind} ({kind}), which bench cannot run: it knows image "
        f"classifiers, {', '.join(CAPTIONERS.values())}, and embedders of the kinds "
        f"{', '.join(EMBEDDERS)}; for others use turbovlm.apply in Python"
    )


def _captioner(model: Any, name: str, beams: int) -> Caption:
    transformers = require("transformers", "hf")
    tokenizer = _pretrained(transformers.AutoTokenizer, name)
    return Caption(
        model,
        _processor(name),
        name,
        decode=lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True),
        options={"num_beams": beams, "max_new_tokens": CAPTION_TOKENS},
    )


def _processor(name: str) -> Any:
    transformers = require("transformers", "hf")
    return processor_prepare(_pretrained(transformers.AutoImageProcessor, name))


def _model(kind: Any, name: str, **options: Any) -> Any:
    """A model in evaluation mode, every weight of which comes from the checkpoint."""
    model, info = _pretrained(kind, name, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        # A backbone saved without its pooling layer: embed by cls, not by random weights.
        model, info = _pretrained(kind, name, output_loading_info=True, add_pooling_layer=False)
        missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__} ({missing[0]}, ...): "
            "give a checkpoint that was saved from this kind of model"
        )
    return model.eval()


def _pretrained(kind: Any, name: str, **options: Any) -> Any:
    """``kind.from_pretrained(name)``, with one kind of error and never remote code."""
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # OSError, ValueError, and whatever a broken file leads to
        if Path(name).is_dir():
            fix = "is the folder complete, as save_pretrained writes it?"
        else:
            fix = "give a local folder, a hub id, or timm:NAME"
        what = kind.__name__.removeprefix("Auto")
        raise ModelError(f"cannot load {what} of {name!r} ({cause(error)}): {fix}") from error


def _match_classes(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Give the model as many classes as the checkpoint was trained for, if it says so."""
    head = state.get(f"{model.pretrained_cfg.get('classifier')}.weight")
    if head is not None and head.ndim == 2 and len(head) != model.num_classes:
        model.reset_classifier(len(head))
