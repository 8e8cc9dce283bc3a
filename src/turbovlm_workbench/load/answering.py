"""Visual question answering by models that write their answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbovlm_workbench.load.image_text import ImageTextModel, blip_tokens


@dataclass(frozen=True)
class AnsweringModel(ImageTextModel, ABC):
    """A model that answers questions about images."""

    @abstractmethod
    def answer(self, pixels: Tensor, questions: Sequence[str]) -> list[str]:
        """One short answer for each image (B, 3, H, W) and its question, B of them.

        An answer does not depend on the other questions of the batch.
        """

    def words(self, ids: Tensor) -> list[str]:
        """Token ids (B, T) to B texts without special tokens and outer blanks."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


class BlipAnswers(AnsweringModel):
    """BLIP: a text encoder reads question and image, a decoder writes; three beams, 10 tokens.

    The settings are those that BLIP was published with for free answers; its published VQAv2 scores
    rank a fixed list of 3128 answers instead. The decoder attends to whatever stands in the place
    of a question, padding too: only questions of the same length are answered together.
    """

    OPTIONS = {"num_beams": 3, "max_new_tokens": 9, "do_sample": False}  # [DEC] is the tenth

    def answer(self, pixels: Tensor, questions: Sequence[str]) -> list[str]:
        """See `AnsweringModel.answer`."""
        tokens = blip_tokens(self, questions, with_image=True)
        ids, lengths = tokens["input_ids"], tokens["attention_mask"].sum(1)
        answers = [""] * len(questions)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            written = self.model.generate(ids[rows, :length], pixels[rows], **self.OPTIONS)
            for row, text in zip(rows.tolist(), self.words(written), strict=True):
                answers[row] = text
        return answers


class Blip2Answers(AnsweringModel):
    """BLIP-2 with either kind of language model: five beams, length penalty -1, 10 tokens."""

    PROMPT = "Question: {} Short answer:"
    OPTIONS = {"num_beams": 5, "length_penalty": -1.0, "max_new_tokens": 10, "do_sample": False}

    def answer(self, pixels: Tensor, questions: Sequence[str]) -> list[str]:
        """See `AnsweringModel.answer`."""
        config, reads = self.model.config, self.model.language_model.config.is_encoder_decoder
        # a decoder goes on after the last position, which must be no padding
        tokens = self.tokens(
            [self.PROMPT.format(question) for question in questions],
            padding_side="right" if reads else "left",
        )
        # the image stands before everything, the first token of the text included
        row = torch.full((len(pixels), config.num_query_tokens), config.image_token_id)
        row = row.to(self.device)
        ids = torch.cat([row, tokens["input_ids"]], dim=1)
        mask = torch.cat([torch.ones_like(row), tokens["attention_mask"]], dim=1)
        written = self.model.generate(pixels, input_ids=ids, attention_mask=mask, **self.OPTIONS)
        return self.words(written if reads else written[:, ids.shape[1] :])


class MiniGPTv2Answers(AnsweringModel):
    """MiniGPT-v2 with the prompt of its published evaluation: greedy, at most 20 tokens."""

    OPTIONS: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}

    def answer(self, pixels: Tensor, questions: Sequence[str]) -> list[str]:
        """See `AnsweringModel.answer`."""
        from turbovlm_workbench.paper.minigptv2_prompt import SHORT_ANSWER, encode, prompt

        prompts = [prompt(SHORT_ANSWER.format(question), "vqa") for question in questions]
        tokens = encode(self.tokenizer, prompts)
        inputs = {key: value.to(self.device) for key, value in tokens.items()}
        return self.words(self.model.generate(pixels, **inputs, **self.OPTIONS))
