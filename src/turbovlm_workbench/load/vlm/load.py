"""From a name to a matcher, an answerer or a judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from turbovlm.errors import ConfigError, ModelError, require
from turbovlm_workbench.load.lab import load_head
from turbovlm_workbench.load.prepare import processor_prepare
from turbovlm_workbench.load.transformers import pretrained, pretrained_model, pretrained_processor
from turbovlm_workbench.load.vlm import answer, match
from turbovlm_workbench.load.vlm.base import Face
from turbovlm_workbench.load.vlm.judge import Judge
from turbovlm_workbench.load.vlm.open_clip import open_clip_parts
from turbovlm_workbench.paper import register

AnyFace = TypeVar("AnyFace", bound=Face)

# By the class that the model was saved from. AIMv2's text encoder in transformers is causal only in
# a batch with padding, so that its embeddings depend on the other texts: it is left out.
MATCHERS: Mapping[str, type[match.Matcher]] = {
    "BlipForImageTextRetrieval": match.Blip,
    "Blip2ForImageTextRetrieval": match.Blip2,
    "CLIPModel": match.DualEncoder,
    "SiglipModel": match.Siglip,
    "MetaClip2Model": match.DualEncoder,
    "AltCLIPModel": match.DualEncoder,
    "ChineseCLIPModel": match.DualEncoder,
    "VisionTextDualEncoderModel": match.DualEncoder,
}
ANSWERERS: Mapping[str, type[answer.Answerer]] = {
    "BlipForQuestionAnswering": answer.Blip,
    "Blip2ForConditionalGeneration": answer.Blip2,
    "MiniGPTv2ForConditionalGeneration": answer.MiniGPTv2,
}
JUDGES: Mapping[str, type[Judge]] = {"BlipForNlvr": Judge}
LAB, OPEN_CLIP = "lab:", "open_clip:"


def load_matcher(name: str, weights: str | Path | None = None) -> match.Matcher:
    """A model for image-text retrieval, in evaluation mode, float32, on the CPU.

    Args:
        name: ``lab:retrieval``, ``open_clip:NAME``, a local folder or a hub id of `MATCHERS`.
        weights: of an open_clip model, a local checkpoint instead of the published one.

    Raises:
        ModelError: if it cannot be found, does not fit or does something else, and if it comes
            without its tokenizer.
        MissingExtra: if its library is not installed.
        ConfigError: for weights that mean nothing.
    """
    library = name.startswith(OPEN_CLIP) and not Path(name).is_dir()
    if weights is not None and not library:
        raise ConfigError("--weights goes with open_clip:NAME; a folder brings its own")
    if library:
        path = None if weights is None else Path(weights)
        model, prepare, tokenizer = open_clip_parts(name.removeprefix(OPEN_CLIP), path)
        return match.OpenClip(model, prepare, name, tokenizer)
    return _load(name, MATCHERS, "image-text retrieval", "lab:retrieval, open_clip:NAME")


def load_answerer(name: str) -> answer.Answerer:
    """A model for visual question answering, in evaluation mode, float32, on the CPU.

    Args:
        name: ``lab:vqa``, a local folder or a hub id of `ANSWERERS`.

    Raises:
        ModelError, MissingExtra: as `load_matcher`.
    """
    return _load(name, ANSWERERS, "visual question answering", "lab:vqa")


def load_judge(name: str) -> Judge:
    """A model for NLVR2, in evaluation mode, float32, on the CPU.

    Args:
        name: ``lab:nlvr``, a local folder or a hub id of `JUDGES`.

    Raises:
        ModelError, MissingExtra: as `load_matcher`.
    """
    return _load(name, JUDGES, "judging statements about two images", "lab:nlvr")


def _load(name: str, kinds: Mapping[str, type[AnyFace]], task: str, others: str) -> AnyFace:
    """The face in ``kinds`` of what ``name`` names; ``others`` are names that fit as well."""

    def fitting(kind: str) -> type[AnyFace]:
        if kind in kinds:
            return kinds[kind]
        raise ModelError(
            f"{name} is a {kind}, which is not for {task}: give {others}, or a folder or hub id "
            f"of a {', '.join(kinds)}"
        )

    transformers = require("transformers", "hf")
    require("torchvision", "hf")
    if name.startswith(LAB) and not Path(name).is_dir():
        model, processor = load_head(name.removeprefix(LAB))
        face = fitting(type(model).__name__)
        return face(model, processor_prepare(processor.image_processor), name, processor.tokenizer)
    library, colon, _ = name.partition(":")
    if colon and not Path(name).is_dir():
        fitting(f"model of {library}")
    register()  # for BlipForNlvr and MiniGPT-v2
    config = pretrained(transformers.AutoConfig, name)
    built = (getattr(config, "architectures", None) or [config.model_type])[0]
    face = fitting(built)
    # before the weights, which take longer to read
    tokenizer, prepare = _tokenizer(name), pretrained_processor(name)
    kind = getattr(transformers, built, transformers.AutoModel)
    model = pretrained_model(kind, name)
    return face(model, prepare, name, tokenizer)


def _tokenizer(name: str) -> Any:
    """The tokenizer of a model, which must be its own.

    Raises:
        ModelError: if there is none. transformers makes one without words up for some kinds.
    """
    transformers = require("transformers", "hf")
    fix = (
        "save the tokenizer that the model was trained with into its folder "
        "(for BLIP: AutoTokenizer.from_pretrained('bert-base-uncased').save_pretrained(FOLDER))"
    )
    try:
        tokenizer = pretrained(transformers.AutoTokenizer, name)
    except ModelError as error:
        raise ModelError(f"{name} has no tokenizer that can be loaded: {fix}") from error
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:
        raise ModelError(f"{name} has no tokenizer: {fix}")
    return tokenizer
