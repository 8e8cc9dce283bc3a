"""Models that answer a prompt about an image: LLaVA's kind, through their processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from turbovlm.errors import ModelError, require
from turbovlm.hosts.language import ROWS
from turbovlm_workbench.load.answering import AnsweringModel
from turbovlm_workbench.load.loaded import Captioner
from turbovlm_workbench.load.prepare import Prepare, processor_prepare
from turbovlm_workbench.load.transformers import architecture, pretrained, pretrained_model
from turbovlm_workbench.paper import register_paper_models

CAPTION = "Describe the image in one sentence."
SHORT_ANSWER = "{}\nAnswer the question using a single word or phrase."
CAPTION_TOKENS, ANSWER_TOKENS = 32, 16
WIDE, HIGH = (64, 48), (48, 64)  # of pictures that show whether the size of pixels is fixed


@dataclass(frozen=True)
class Prompts:
    """Callable: B instructions, each about one image, to inputs of ``generate`` beside the pixels.

    The placeholders of an image are as many as the processor makes of any picture, as the model
    resizes all of them to one size.

    Args:
        processor: the model's own.
    """

    processor: Any

    def __call__(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (B, T), padded on the left, and what goes along."""
        found = self.processor(
            images=[[Image.new("RGB", WIDE)] for _ in instructions],
            text=[self.text(instruction) for instruction in instructions],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return {key: value for key, value in found.items() if key != "pixel_values"}

    def text(self, instruction: str) -> str:
        """With the chat template of the model; the placeholder and the words where it has none."""
        if getattr(self.processor, "chat_template", None) is None:
            return f"{self.processor.image_token}\n{instruction}"
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        message = {"role": "user", "content": content}
        return self.processor.apply_chat_template([message], add_generation_prompt=True)


def answer_ids(
    model: Any, pixels: Tensor, inputs: dict[str, Tensor], options: dict[str, Any]
) -> Tensor:
    """What the model writes after its prompts: ids (B, T)."""
    inputs = {key: value.to(pixels.device) for key, value in inputs.items()}
    ids = model.generate(**inputs, pixel_values=pixels, do_sample=False, **options)
    return ids[:, inputs["input_ids"].shape[1] :]


@dataclass(frozen=True, kw_only=True)
class PromptedCaptioner(Captioner):
    """Writes a caption as the answer to a prompt, the same for every image.

    Args:
        prompts: instructions to inputs.
        instruction: what is asked.
    """

    prompts: Prompts
    instruction: str = CAPTION

    def write(self, model: Any, pixels: Tensor) -> Tensor:
        """See `Captioner.write`."""
        inputs = self.prompts([self.instruction] * len(pixels))
        return answer_ids(model, pixels, inputs, self.options)


@dataclass(frozen=True)
class PromptedAnswers(AnsweringModel):
    """Answers questions with a word or phrase, greedily, at most 16 tokens.

    Args:
        prompts: instructions to inputs.
        instruction: what is asked, with ``{}`` for the question.
    """

    prompts: Prompts
    instruction: str = SHORT_ANSWER

    OPTIONS = {"max_new_tokens": ANSWER_TOKENS}

    def answer(self, pixels: Tensor, questions: Sequence[str]) -> list[str]:
        """See `AnsweringModel.answer`."""
        inputs = self.prompts([self.instruction.format(question) for question in questions])
        return self.words(answer_ids(self.model, pixels, inputs, self.OPTIONS))


def answers_prompts(name: str) -> bool:
    """Whether a local folder or hub id is a model of `turbovlm.hosts.language.ROWS`.

    Raises:
        ModelError: if it has no configuration.
        MissingExtra: if transformers is not installed.
    """
    if ":" in name and not Path(name).is_dir():
        return False
    require("transformers", "hf")
    require("torchvision", "hf")
    register_paper_models()  # MiniGPT-v2's configuration is no class of transformers
    heads = {head.rsplit(".", 1)[-1] for row in ROWS for head in row.heads}
    return architecture(name) in heads


def load_prompted_captioner(name: str, *, beams: int) -> PromptedCaptioner:
    """A captioner, by a local folder or a hub id.

    Raises:
        ModelError: if a part of it cannot be loaded, or it takes pictures of any size.
        MissingExtra: if transformers or torchvision is not installed.
    """
    model, prepare, processor = _parts(name)
    return PromptedCaptioner(
        model,
        prepare,
        name,
        decode=lambda ids: processor.tokenizer.batch_decode(ids, skip_special_tokens=True),
        options={"num_beams": beams, "max_new_tokens": CAPTION_TOKENS},
        prompts=Prompts(processor),
    )


def load_prompted_answers(name: str) -> PromptedAnswers:
    """A model for questions, by a local folder or a hub id.

    Raises:
        ModelError, MissingExtra: as `load_prompted_captioner`.
    """
    model, prepare, processor = _parts(name)
    return PromptedAnswers(model, prepare, name, processor.tokenizer, Prompts(processor))


def _parts(name: str) -> tuple[Any, Prepare, Any]:
    transformers = require("transformers", "hf")
    processor = pretrained(transformers.AutoProcessor, name)
    _check_processor(name, processor)
    prepare = processor_prepare(processor.image_processor)
    _check_size(name, prepare)
    return pretrained_model(getattr(transformers, architecture(name)), name), prepare, processor


def _check_processor(name: str, processor: Any) -> None:
    missing = [p for p in ("image_processor", "tokenizer") if not hasattr(processor, p)]
    if missing:
        raise ModelError(
            f"{name} comes without its {missing[0].replace('_', ' ')}: save the model's whole "
            "processor into its folder, AutoProcessor.from_pretrained(...).save_pretrained(FOLDER)"
        )
    if not any(getattr(processor, part, None) for part in ("chat_template", "image_token")):
        raise ModelError(
            f"{name} has neither a chat template nor an image token, so that nothing says how an "
            "image stands in a prompt: set chat_template of its processor and save it"
        )


def _check_size(name: str, prepare: Prepare) -> None:
    """Refuse what does not give one square of pixels an image, whatever its shape."""
    shapes = set()
    for size in (WIDE, HIGH):
        pixels = prepare([Image.new("RGB", size)])
        shapes.add(tuple(pixels.shape) if torch.is_tensor(pixels) else ())
    (shape, *others) = shapes
    if others or len(shape) != 4 or shape[0] != 1:
        raise ModelError(
            f"{name} takes pictures in their own size or in tiles, which bench and eval do not: "
            "use lmms-eval with --model turbovlm, or turbovlm.apply in Python; turbovlm check "
            "counts it"
        )
