"""Models that answer a prompt about an image, LLaVA's and Qwen-VL's kind, by their processor."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from turbovlm.errors import ModelError, require
from turbovlm.hosts.language import ROWS
from turbovlm_workbench.load.answering import AnsweringModel
from turbovlm_workbench.load.loaded import Captioner
from turbovlm_workbench.load.own_size import Pictures, Pixels
from turbovlm_workbench.load.prepare import Prepare, own_size_prepare, processor_prepare
from turbovlm_workbench.load.transformers import architecture, pretrained, pretrained_model
from turbovlm_workbench.paper import register_paper_models

CAPTION = "Describe the image in one sentence."
SHORT_ANSWER = "{}\nAnswer the question using a single word or phrase."
CAPTION_TOKENS, ANSWER_TOKENS = 32, 16
WIDE, HIGH = (64, 48), (48, 64)  # of pictures that show whether the size of pixels is fixed


@dataclass(frozen=True)
class Prompts:
    """Callable: B instructions, each about one image, and the images, to inputs of ``generate``.

    Where the model resizes all pictures to one size, the placeholders of an image are as many as
    the processor makes of any picture.

    Args:
        processor: the model's own.
    """

    processor: Any

    def __call__(self, instructions: Sequence[str], pixels: Pixels) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (B, T), padded on the left, and what goes along."""
        texts = [self.text(instruction) for instruction in instructions]
        if isinstance(pixels, Pictures):
            return pixels.inputs(texts)
        blank = Pictures(self.processor, [Image.new("RGB", WIDE)] * len(texts), pixels.device)
        return {**blank.inputs(texts), "pixel_values": pixels}

    def text(self, instruction: str) -> str:
        """With the chat template of the model; the placeholder and the words where it has none."""
        if getattr(self.processor, "chat_template", None) is None:
            return f"{self.processor.image_token}\n{instruction}"
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        message = {"role": "user", "content": content}
        return self.processor.apply_chat_template([message], add_generation_prompt=True)


def answer_ids(model: Any, inputs: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    """What the model writes after its prompts: ids (B, T)."""
    ids = model.generate(**inputs, do_sample=False, **options)
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

    def encode(self, model: Any, pixels: Pixels) -> object:
        """See `Captioner.encode`."""
        if not isinstance(pixels, Pictures):
            return super().encode(model, pixels)
        takes = inspect.signature(model.get_image_features).parameters
        inputs = self._inputs(pixels)
        return model.get_image_features(**{k: v for k, v in inputs.items() if k in takes})

    def write(self, model: Any, pixels: Pixels) -> Tensor:
        """See `Captioner.write`."""
        return answer_ids(model, self._inputs(pixels), self.options)

    def _inputs(self, pixels: Pixels) -> dict[str, Tensor]:
        return self.prompts([self.instruction] * len(pixels), pixels)


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

    def answer(self, pixels: Pixels, questions: Sequence[str]) -> list[str]:
        """See `AnsweringModel.answer`."""
        asked = [self.instruction.format(question) for question in questions]
        return self.words(answer_ids(self.model, self.prompts(asked, pixels), self.OPTIONS))


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
        ModelError: if a part of it cannot be loaded.
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
    prepare = _prepare(name, processor)
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


def _prepare(name: str, processor: Any) -> Prepare:
    """Pixels, where every image becomes one square of them, else `Pictures`.

    Raises:
        ModelError: if pictures keep their shape and nothing tells the model which.
    """
    found = [Pictures(processor, [Image.new("RGB", size)]).seen() for size in (WIDE, HIGH)]
    shapes = {tuple(values["pixel_values"].shape) for values in found}
    (shape, *others) = shapes
    if not others and len(shape) == 4 and shape[0] == 1:
        return processor_prepare(processor.image_processor)
    if set(found[0]) == {"pixel_values"} and all(len(s) == 4 and s[0] == 1 for s in shapes):
        raise ModelError(
            f"{name} gets pictures of different shapes and is not told which: give the image "
            "processor in its folder one size, height and width, or a centre crop"
        )
    return own_size_prepare(processor)
