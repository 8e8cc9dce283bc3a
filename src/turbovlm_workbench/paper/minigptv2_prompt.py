"""MiniGPT-v2's prompt: the instruction template, its task tags, and images and text to inputs.

A prompt is ``<s>[INST] <Img><ImageHere></Img> [vqa] QUESTION [/INST]``. The published code splits
it at ``<ImageHere>`` and tokenises the two pieces on their own, so the same is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from turbovlm.errors import ConfigError, InputError, require
from turbovlm_workbench.paper.minigptv2 import IMAGE_TOKEN

if TYPE_CHECKING:
    from transformers import BlipImageProcessor

BOS, IMAGE_HERE = "<s>", "<ImageHere>"
TASKS = ("vqa", "caption", "grounding", "refer", "identify", "detection")

# The sentences of the published evaluation, for `prompt(SHORT_ANSWER.format(question), "vqa")`.
SHORT_ANSWER = "Based on the image, respond to this question with a short answer: {}"
"""OK-VQA and GQA."""
VIZWIZ = (
    "The question is '{}' Based on the image, answer the question with a single word or phrase. "
    "and reply 'unanswerable' when the provided information is insufficient"
)


def prompt(text: str, task: str | None = None) -> str:
    """The whole prompt for one instruction about one image.

    Args:
        text: the instruction, e.g. a question, or ``"give me the location of the cat"``.
        task: a tag of `TASKS`; None for free conversation, without a tag.

    Raises:
        ConfigError: for an unknown tag.
    """
    if task is not None and task not in TASKS:
        raise ConfigError(f"unknown task {task!r}: use one of {', '.join(TASKS)}, or None")
    tag = "" if task is None else f"[{task}] "
    return f"{BOS}[INST] <Img>{IMAGE_HERE}</Img> {tag}{text} [/INST]"


def encode(tokenizer: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Prompts to one batch for the model, padded on the left.

    The sequence starts with two bos tokens, as in the published evaluation: one for the ``<s>`` of
    the template, and the one that the tokeniser puts before every text.

    Args:
        tokenizer: LLaMA-2's.
        prompts: B texts as from `prompt`.

    Returns:
        ``input_ids`` (B, T) with one `IMAGE_TOKEN` per row, and ``attention_mask`` (B, T).

    Raises:
        InputError: if there is no prompt, or one does not hold exactly one ``<ImageHere>``.
    """
    rows: list[list[int]] = []
    for text in prompts:
        pieces = text.split(IMAGE_HERE)
        if len(pieces) != 2:
            raise InputError(
                f"a prompt needs exactly one {IMAGE_HERE}, this one has {len(pieces) - 1}: "
                f"{text!r}; write only the instruction and use prompt(instruction, task)"
            )
        # without its <s>, since tokenizers differ in whether a space follows a special token
        start = pieces[0].removeprefix(BOS)
        bos = [tokenizer.bos_token_id] * (1 + (start != pieces[0]))
        before, after = (
            tokenizer(piece, add_special_tokens=False).input_ids for piece in (start, pieces[1])
        )
        rows.append([*bos, *before, IMAGE_TOKEN, *after])
    if not rows:
        raise InputError("no prompts: give at least one")
    longest = max(map(len, rows))
    gaps = [longest - len(row) for row in rows]
    return {
        "input_ids": torch.tensor([[0] * gap + row for gap, row in zip(gaps, rows, strict=True)]),
        "attention_mask": torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps]),
    }


def image_processor(size: int = 448) -> BlipImageProcessor:
    """The published preprocessing: bicubic to ``size`` x ``size`` px, CLIP's mean and deviation.

    Raises:
        MissingExtra: if transformers is not installed.
    """
    transformers = require("transformers", "hf")
    require("torchvision", "hf")
    return transformers.BlipImageProcessor(size={"height": size, "width": size})


def prepare(
    tokenizer: Any, images: Sequence[Image.Image], prompts: Sequence[str], *, size: int = 448
) -> dict[str, Tensor]:
    """Images and prompts to what ``model.generate(**inputs)`` takes.

    Args:
        tokenizer: LLaMA-2's.
        images: B images of any size.
        prompts: B texts as from `prompt`.
        size: the model's ``vision_config.image_size``, in px.

    Returns:
        ``pixel_values`` (B, 3, size, size), ``input_ids`` and ``attention_mask`` (B, T).

    Raises:
        InputError: if the numbers differ, and as `encode`.
        MissingExtra: if transformers is not installed.
    """
    if len(images) != len(prompts):
        raise InputError(
            f"{len(images)} images but {len(prompts)} prompts: give one image for every prompt"
        )
    text = encode(tokenizer, prompts)
    process: Any = image_processor(size)
    pixels = process([image.convert("RGB") for image in images], return_tensors="pt").pixel_values
    return {"pixel_values": pixels, **text}
