"""What the lab does beside captions: it answers questions, matches captions and judges pairs.

Each head is a small model of transformers' (or this package's) own class around the vision encoder
of the captioner, which is stored once, in float32. What a head adds is stored in float16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from turbovlm.errors import ModelError, require
from turbovlm_lab import captioner, grammar, kinds, pairs, questions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BlipProcessor, PreTrainedModel

HEADS = ("vqa", "retrieval", "nlvr")
FILE = "head.safetensors"
# BlipForQuestionAnswering's decoder reads the question by layers as wide as the image's.
_TEXT_WIDTH = 160
_SHARED = "vision_model."


def head_vocabulary() -> tuple[str, ...]:
    """Every word that the heads read or say, those of captions first."""
    parts = (
        grammar.caption_vocabulary(),
        kinds.kind_vocabulary(),
        questions.question_vocabulary(),
        pairs.statement_vocabulary(),
    )
    return tuple(dict.fromkeys(word for part in parts for word in part))


def build_head_processor() -> BlipProcessor:
    """The processor of all heads: the captioner's, with more words."""
    return captioner.build_caption_processor(head_vocabulary())


def build_head(head: str) -> PreTrainedModel:
    """An untrained head around an untrained vision encoder of the captioner's sizes.

    Raises:
        ModelError: if there is no such head.
        MissingExtra: if transformers is not installed.
    """
    transformers = require("transformers", "hf")
    if head not in HEADS:
        raise ModelError(f"the lab has no head {head!r}: use one of {', '.join(HEADS)}")
    vision: Any = captioner.build_captioner().config.vision_config
    tokens = (*captioner.SPECIAL_TOKENS, *head_vocabulary())
    text = {
        "vocab_size": len(tokens),
        "hidden_size": _TEXT_WIDTH,
        "intermediate_size": 2 * _TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "max_position_embeddings": 64,
        "initializer_range": 0.02,
        "pad_token_id": tokens.index("[PAD]"),
        "bos_token_id": tokens.index("[CLS]"),
        "eos_token_id": tokens.index("[SEP]"),
        "sep_token_id": tokens.index("[SEP]"),
    }
    if head == "nlvr":
        from turbovlm_workbench.paper.nlvr import BlipForNlvr, NlvrConfig

        text["is_decoder"] = False
        # BLIP puts [ENC] in the place of [CLS], which this vocabulary has no need of
        enc = tokens.index("[CLS]")
        return BlipForNlvr(NlvrConfig(vision_config=vision, text_config=text, enc_token_id=enc))
    config = transformers.BlipConfig(
        vision_config=vision.to_dict(),
        text_config=text,
        image_text_hidden_size=128,
        initializer_range=0.02,
    )
    names = {"vqa": "BlipForQuestionAnswering", "retrieval": "BlipForImageTextRetrieval"}
    return getattr(transformers, names[head])(config)


def load_head(
    head: str, folder: Path | str = captioner.WEIGHTS
) -> tuple[PreTrainedModel, BlipProcessor]:
    """A trained head (float32, evaluation mode) and its processor.

    Args:
        head: ``"vqa"``, ``"retrieval"`` or ``"nlvr"``.
        folder: with the captioner's weights and a folder for each head.

    Raises:
        ModelError: if there is no such head, or ``folder`` has no weights for it.
        MissingExtra: if transformers is not installed.
    """
    model = build_head(head)
    model.load_state_dict({**shared_weights(folder), **own_weights(head, folder)})
    return model.eval(), build_head_processor()


def own_weights(head: str, folder: Path | str = captioner.WEIGHTS) -> dict[str, Tensor]:
    """What a head adds to the captioner's vision encoder, float32.

    Raises:
        ModelError: if ``folder`` has no weights for it.
    """
    return _read(Path(folder) / head / FILE, f"train_heads {head}")


def shared_weights(folder: Path | str = captioner.WEIGHTS) -> dict[str, Tensor]:
    """The captioner's vision encoder, float32, under the names that it has in every head.

    Raises:
        ModelError: if ``folder`` holds no captioner.
    """
    weights = _read(Path(folder) / "model.safetensors", "train")
    return {name: x for name, x in weights.items() if name.startswith(_SHARED)}


def _read(path: Path, module: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"no weights in {path}: train them by python -m turbovlm_lab.{module}")
    return {name: x.float() for name, x in load_file(path).items()}


def save_head(
    model: PreTrainedModel, head: str, record: Mapping[str, Any], trained: set[str], folder: Path
) -> None:
    """Write what a head adds to the captioner's vision encoder, and the record of its training.

    Args:
        model: the head.
        head: its name, and that of the folder it gets in ``folder``.
        record: becomes ``training.json``.
        trained: parameters of the vision encoder that the head has versions of its own of.
        folder: of the captioner's weights.
    """
    own = {
        name: x.half()  # a copy, so that tied weights are no obstacle
        for name, x in model.state_dict().items()
        if not name.startswith(_SHARED) or name in trained
    }
    target = folder / head
    target.mkdir(parents=True, exist_ok=True)
    save_file(own, target / FILE)
    (target / FILE).chmod(0o644)
    (target / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
