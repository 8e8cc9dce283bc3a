"""From a name to a model for one of the tasks about images and text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from turbovlm.errors import ConfigError, ModelError, require
from turbovlm_workbench.load import answering, matching
from turbovlm_workbench.load.image_text import ImageTextModel
from turbovlm_workbench.load.lab import lab_answers, lab_head
from turbovlm_workbench.load.loaded import Embedder
from turbovlm_workbench.load.models import LIBRARIES, load_model
from turbovlm_workbench.load.open_clip import open_clip_parts
from turbovlm_workbench.load.prepare import processor_prepare
from turbovlm_workbench.load.prompted import answers_prompts, load_prompted_answers
from turbovlm_workbench.load.random_state import keeps_random_state
from turbovlm_workbench.load.statements import StatementModel
from turbovlm_workbench.load.transformers import (
    architecture,
    pretrained,
    pretrained_model,
    pretrained_processor,
)
from turbovlm_workbench.paper import register_paper_models

AnyModel = TypeVar("AnyModel", bound=ImageTextModel)

# By the class that the model was saved from. AIMv2's text encoder in transformers is causal only in
# a batch with padding, so that its embeddings depend on the other texts: it is left out.
MATCHING_MODELS: Mapping[str, type[matching.MatchingModel]] = {
    "BlipForImageTextRetrieval": matching.BlipMatching,
    "Blip2ForImageTextRetrieval": matching.Blip2Matching,
    "CLIPModel": matching.DualEncoder,
    "SiglipModel": matching.SiglipMatching,
    "MetaClip2Model": matching.DualEncoder,
    "AltCLIPModel": matching.DualEncoder,
    "ChineseCLIPModel": matching.DualEncoder,
    "VisionTextDualEncoderModel": matching.DualEncoder,
}
ANSWERING_MODELS: Mapping[str, type[answering.AnsweringModel]] = {
    "BlipForQuestionAnswering": answering.BlipAnswers,
    "Blip2ForConditionalGeneration": answering.Blip2Answers,
    "MiniGPTv2ForConditionalGeneration": answering.MiniGPTv2Answers,
    "UPopAnswerer": answering.BlipAnswers,
}
STATEMENT_MODELS: Mapping[str, type[StatementModel]] = {"BlipForNlvr": StatementModel}
LAB, OPEN_CLIP = "lab:", "open_clip:"
LAB_VLM = "lab:vlm"


@keeps_random_state
def load_matching(name: str, weights: str | Path | None = None) -> matching.MatchingModel:
    """A model for image-text retrieval, in evaluation mode, float32, on the CPU.

    Args:
        name: ``lab:retrieval``, ``open_clip:NAME``, a local folder or a hub id of
            `MATCHING_MODELS`.
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
        return matching.OpenClipMatching(model, prepare, name, tokenizer)
    return _load(name, MATCHING_MODELS, "image-text retrieval", "lab:retrieval, open_clip:NAME")


def load_embedding(
    name: str, weights: str | Path | None = None
) -> matching.MatchingModel | Embedder:
    """A model that gives one vector a picture: with its text side where it has one.

    Args:
        name: of a model of `load_matching`, or an embedder of `load_model`.
        weights: as there.

    Raises:
        ModelError: if it does something else, or gives several vectors a picture.
        TurboError: as `load_matching` and `load_model`.
    """
    library = name.partition(":")[0] if ":" in name and not Path(name).is_dir() else ""
    if library in ("lab", "open_clip"):
        return load_matching(name, weights)
    if library not in LIBRARIES and architecture(name) in MATCHING_MODELS:
        if MATCHING_MODELS[architecture(name)] is matching.Blip2Matching:
            raise ModelError(
                f"{name} gives several vectors a picture, one for each of its queries: give a "
                "model with one, such as CLIP, SigLIP or BlipForImageTextRetrieval"
            )
        return load_matching(name, weights)
    loaded = load_model(name, weights)
    if isinstance(loaded, Embedder):
        return loaded
    raise ModelError(
        f"{name} is a {type(loaded).__name__.lower()}, which gives no embedding: give CLIP, "
        "SigLIP, DINOv2 or another encoder, open_clip:NAME, or lab:retrieval"
    )


@keeps_random_state
def load_answering(name: str) -> answering.AnsweringModel:
    """A model for visual question answering, in evaluation mode, float32, on the CPU.

    Args:
        name: ``lab:vqa``, ``lab:vlm``, a local folder or a hub id of `ANSWERING_MODELS`, or of a
            model that answers a prompt about an image.

    Raises:
        ModelError, MissingExtra: as `load_matching`.
    """
    if name == LAB_VLM and not Path(name).is_dir():
        require("transformers", "hf")
        return lab_answers()
    if not name.startswith(LAB) and answers_prompts(name):
        return load_prompted_answers(name)
    return _load(name, ANSWERING_MODELS, "visual question answering", "lab:vqa, lab:vlm")


@keeps_random_state
def load_statements(name: str) -> StatementModel:
    """A model for NLVR2, in evaluation mode, float32, on the CPU.

    Args:
        name: ``lab:nlvr``, a local folder or a hub id of `STATEMENT_MODELS`.

    Raises:
        ModelError, MissingExtra: as `load_matching`.
    """
    return _load(name, STATEMENT_MODELS, "judging statements about two images", "lab:nlvr")


def _load(name: str, kinds: Mapping[str, type[AnyModel]], task: str, others: str) -> AnyModel:
    """The entry of ``kinds`` of what ``name`` names; ``others`` are names that fit as well."""

    def fitting(kind: str) -> type[AnyModel]:
        if kind in kinds:
            return kinds[kind]
        raise ModelError(
            f"{name} is a {kind}, which is not for {task}: give {others}, or a folder or hub id "
            f"of a {', '.join(kinds)}"
        )

    transformers = require("transformers", "hf")
    require("torchvision", "hf")
    if name.startswith(LAB) and not Path(name).is_dir():
        model, processor = lab_head(name.removeprefix(LAB))
        kind_of_model = fitting(type(model).__name__)
        return kind_of_model(
            model, processor_prepare(processor.image_processor), name, processor.tokenizer
        )
    library, colon, _ = name.partition(":")
    if colon and not Path(name).is_dir():
        fitting(f"model of {library}")
    register_paper_models()  # BlipForNlvr, MiniGPT-v2 and UPop's
    config = pretrained(transformers.AutoConfig, name)
    built = (getattr(config, "architectures", None) or [config.model_type])[0]
    kind_of_model = fitting(built)
    # before the weights, which take longer to read
    tokenizer, prepare = _tokenizer(name), pretrained_processor(name)
    kind = getattr(transformers, built, transformers.AutoModel)
    model = pretrained_model(kind, name)
    return kind_of_model(model, prepare, name, tokenizer)


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
