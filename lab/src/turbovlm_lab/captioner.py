"""The lab's captioner: a small BLIP of transformers, its processor, and the shipped weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from turbovlm.errors import ModelError, require
from turbovlm_lab.grammar import caption_vocabulary
from turbovlm_lab.scenes import MAX_OBJECTS, SIDE

if TYPE_CHECKING:
    from transformers import BlipForConditionalGeneration, BlipProcessor

WEIGHTS = Path(__file__).parent / "weights"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CLAUSE_TOKENS = 9  # a SIZE COLOUR SHAPE at the WORD WORD ,
CAPTION_TOKENS = MAX_OBJECTS * CLAUSE_TOKENS + 2  # and [CLS] before, [SEP] after


def build_captioner(
    *, width: int = 160, blocks: int = 8, heads: int = 5, text_width: int = 128
) -> BlipForConditionalGeneration:
    """An untrained captioner: 224 px, patches of 16 px, hence 197 visual tokens."""
    transformers = require("transformers", "hf")
    # BLIP's own default for the vision tower is a spread of 1e-10, meant to be overwritten by
    # pretrained weights; a model trained from scratch needs the usual 0.02.
    vision = {
        "hidden_size": width,
        "intermediate_size": width * 16 // 5,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "image_size": SIDE,
        "patch_size": 16,
        "initializer_range": 0.02,
    }
    tokens = SPECIAL_TOKENS + caption_vocabulary()
    text = {
        "vocab_size": len(tokens),
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.02,
        "pad_token_id": tokens.index("[PAD]"),
        # BLIP starts a caption with `bos` and ends it with `sep`.
        "bos_token_id": tokens.index("[CLS]"),
        "eos_token_id": tokens.index("[SEP]"),
        "sep_token_id": tokens.index("[SEP]"),
    }
    config = transformers.BlipConfig(vision_config=vision, text_config=text, initializer_range=0.02)
    return transformers.BlipForConditionalGeneration(config)


def build_caption_processor(words: Sequence[str] | None = None) -> BlipProcessor:
    """A processor that resizes nothing and has one token per word.

    Args:
        words: beside the special tokens; None for those of ``build_captioner``.
    """
    transformers = require("transformers", "hf")
    images = transformers.BlipImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=list(MEAN), image_std=list(STD)
    )
    known = (*SPECIAL_TOKENS, *(caption_vocabulary() if words is None else words))
    text = transformers.BertTokenizer(
        vocab={word: index for index, word in enumerate(known)},
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=64,
    )
    return transformers.BlipProcessor(images, text)


def load_captioner(
    folder: Path | str = WEIGHTS,
) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """The trained captioner (float32, evaluation mode) and its processor.

    Raises:
        ModelError: if ``folder`` holds no weights.
        MissingExtra: if transformers is not installed.
    """
    transformers = require("transformers", "hf")
    if not (Path(folder) / "model.safetensors").is_file():
        raise ModelError(f"no captioner in {folder}: train one with python -m turbovlm_lab.train")
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder)
    return model.eval(), transformers.BlipProcessor.from_pretrained(folder)


def write_captions(
    model: BlipForConditionalGeneration,
    processor: BlipProcessor,
    images: Sequence[NDArray[np.uint8]],
    *,
    batch_size: int = 32,
) -> list[str]:
    """Greedy captions of ``images``, each uint8 (height, width, 3) RGB."""
    texts: list[str] = []
    call: Any = processor  # transformers types its processors' arguments more narrowly than it acts
    for start in range(0, len(images), batch_size):
        batch = call(images=list(images[start : start + batch_size]), return_tensors="pt")
        tokens = model.generate(
            batch["pixel_values"].to(model.device), max_new_tokens=CAPTION_TOKENS, do_sample=False
        )
        texts += processor.batch_decode(tokens, skip_special_tokens=True)
    return texts
