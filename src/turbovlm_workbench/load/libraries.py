"""Classifiers and embedders of timm, torchvision and open_clip, by their names there.

Each comes with its published weights, or with those of a local checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from turbovlm.errors import ModelError, require
from turbovlm_workbench.checkpoint import cause, load_strictly, read_weights
from turbovlm_workbench.load.loaded import Classifier, Embedder
from turbovlm_workbench.load.prepare import open_clip_prepare, timm_prepare, torchvision_prepare
from turbovlm_workbench.load.skeleton import check_known, silent


def load_timm(name: str, weights: Path | None = None) -> Classifier | Embedder:
    """A timm classifier, or an embedder where the architecture has no classes.

    Raises:
        ModelError: for an unknown name, weights out of reach, or a file that does not fit.
        MissingExtra: if timm is not installed.
    """
    timm = require("timm", "timm")
    check_known("timm", name.split(".")[0], timm.list_models())
    title = f"timm:{name}"
    if weights is None:
        with _published(title):
            model = timm.create_model(name, pretrained=True)
    else:
        state = read_weights(weights)
        model = timm.create_model(name, pretrained=False)
        _match_classes(model, state)
        load_strictly(model, state, weights, title)
    kind = Classifier if getattr(model, "num_classes", 0) else Embedder
    return kind(model.eval(), timm_prepare(model), title)


def load_torchvision(name: str, weights: Path | None = None) -> Classifier:
    """A torchvision classifier.

    The image size of a VisionTransformer and the number of classes follow from the file, so that
    SWAG's weights (384, 512 and 518 px) load by the names of the plain models.

    Raises:
        ModelError: for an unknown name, weights out of reach, or a file that does not fit.
        MissingExtra: if torchvision is not installed.
    """
    models = require("torchvision.models", "timm")
    check_known("torchvision", name, models.list_models(models))
    title = f"torchvision:{name}"
    if weights is None:
        with _published(title):
            model = models.get_model(name, weights="DEFAULT")
    else:
        state = read_weights(weights)
        model = _torchvision_like(name, state, weights)
        load_strictly(model, state, weights, title)
    model.num_classes = len(_head(model)[1])  # not every torchvision model keeps it
    prepare = torchvision_prepare(name, getattr(model, "image_size", None), weights)
    return Classifier(model.eval(), prepare, title)


def load_open_clip(name: str, weights: Path | None = None) -> Embedder:
    """The image tower of an `open_clip_model`: ``encode_image`` (B, C), before normalisation.

    Raises:
        ModelError, MissingExtra: as `open_clip_model`.
    """
    tower = open_clip_model(name, weights).visual
    if getattr(tower, "output_tokens", False):
        tower.output_tokens = False  # CoCa's text decoder reads them; the embedding stands first
    return Embedder(tower, open_clip_prepare(tower), f"open_clip:{name}")


def open_clip_model(name: str, weights: Path | None = None) -> Any:
    """A whole open_clip model in evaluation mode.

    The published weights are those of the first tag that was trained with the activation of this
    architecture: OpenAI's, for one, go by ``ViT-B-32-quickgelu`` and not by ``ViT-B-32``. A file is
    read by open_clip itself, which knows several layouts and fits position embeddings to the
    grid of the architecture; every other weight must match. Its preprocessing is taken to be that
    of the first tag: SigLIP's is not CLIP's, and a file does not tell.

    Raises:
        ModelError: for an unknown name, weights out of reach, or a file that does not fit.
        MissingExtra: if open_clip is not installed.
    """
    open_clip = require("open_clip", "open_clip")
    check_known("open_clip", name, open_clip.list_models())
    title = f"open_clip:{name}"
    listed = open_clip.list_pretrained_tags_by_model(name)
    tags = {t: open_clip.get_pretrained_cfg(name, t) for t in listed}
    if weights is None:
        tag = _fitting_tag(open_clip, name, tags)
        with _published(title), silent():
            model = open_clip.create_model(name, pretrained=tag)
    elif not weights.is_file():
        raise ModelError(f"no weights file {weights}: check the path")
    else:
        recipe = next(iter(tags.values()), None)
        file = str(weights.absolute())  # a bare name could be a tag
        with _fitting(weights, title), silent():
            model = open_clip.create_model(name, pretrained=file, force_preprocess_cfg=recipe)
    return model.eval()


def vit_size(state: Mapping[str, Tensor]) -> int | None:
    """Side in pixels of the images for which a torchvision VisionTransformer was trained.

    It follows from the position embeddings ``(1, 1 + g^2, C)`` and the patches ``(C, 3, p, p)``:
    g p. None if these are not the weights of one.
    """
    positions, patches = (state.get(k) for k in ("encoder.pos_embedding", "conv_proj.weight"))
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return None
    return isqrt(positions.shape[1] - 1) * patches.shape[-1]


def _torchvision_like(name: str, state: Mapping[str, Tensor], path: Path) -> Any:
    """The architecture with the image size and the number of classes of the file."""
    models = require("torchvision.models", "timm")
    side = vit_size(state)
    options = {} if side is None else {"image_size": side}
    with _fitting(path, f"torchvision:{name}"):
        model = models.get_model(name, **options)
        key, head = _head(model)
        found = state.get(key, head)
        if found.ndim == head.ndim and len(found) != len(head):
            model = models.get_model(name, num_classes=len(found), **options)
    return model


def _head(model: nn.Module) -> tuple[str, Tensor]:
    """Name and value of a classifier's last parameter, which has an entry per class."""
    return list(model.named_parameters())[-1]


def _match_classes(model: Any, state: Mapping[str, Tensor]) -> None:
    """Give a timm model as many classes as the checkpoint was trained for, if it says so."""
    head = state.get(f"{model.pretrained_cfg.get('classifier')}.weight")
    if head is not None and head.ndim == 2 and len(head) != model.num_classes:
        model.reset_classifier(len(head))


def _fitting_tag(open_clip: Any, name: str, tags: Mapping[str, Mapping[str, Any]]) -> str:
    """The first tag whose weights were trained with the activation of this architecture."""
    if not tags:
        raise ModelError(
            f"open_clip knows no published weights of {name}: give a local file with --weights"
        )
    quick = open_clip.get_model_config(name).get("quick_gelu", False)
    for tag, recipe in tags.items():
        if recipe.get("quick_gelu", False) == quick:
            return tag
    raise ModelError(
        f"all published weights of open_clip:{name} were trained with another activation than "
        f"this architecture has: try open_clip:{name}-quickgelu, or give a local file with "
        "--weights"
    )


@contextmanager
def _published(title: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the libraries pass on whatever the download raised
        raise ModelError(
            f"cannot get the weights of {title} ({cause(error)}): give a local file with "
            "--weights, or check the connection"
        ) from error


@contextmanager
def _fitting(path: Path, title: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of pickle, of a constructor, of load_state_dict
        reason = cause(ValueError(" ".join(str(error).split()) or type(error).__name__))
        raise ModelError(
            f"{path} does not fit {title} ({reason}): give the architecture that these weights "
            "were trained in"
        ) from error
