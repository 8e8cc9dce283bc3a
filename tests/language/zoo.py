"""Cases: one or more a row of the table, with prompts for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tests.language import build as b
from tests.language.build import IMAGE, WORDS, Inputs, hf


@dataclass(frozen=True)
class Case:
    """One host.

    Attributes:
        name: for the test's id.
        build: the model.
        image: token ids that stand for image ``i`` of a prompt.
        pixels: what else the model is given, for the number of images of each sample.
        types: name of the argument that tells placeholders from text, if there is one.
        typed: types of a placeholder and of a word that follows the prompt.
        attention: implementations that the host has.
        static: whether the host itself runs with a static cache.
        recurrent: part of the language model is no attention: a dropped token is not the same as
            a hidden one.
    """

    name: str
    build: Callable[[], nn.Module]
    image: Callable[[int], list[int]]
    pixels: Callable[[Sequence[int]], Inputs]
    types: str | None = None
    typed: tuple[int, int] = (1, 0)
    attention: tuple[str, ...] = ("sdpa", "eager")
    static: bool = True
    recurrent: bool = False

    def inputs(self, *counts: int, seed: int = 0, words: int = 4) -> Inputs:
        """A left-padded batch of prompts, one a count of images; text differs in length."""
        generator = torch.Generator().manual_seed(seed)
        rows, number = [], 0
        for sample, count in enumerate(counts):
            row = _words(2 + sample, generator)
            for _ in range(count):
                row += self.image(number) + _words(2, generator)
                number += 1
            rows.append(row + _words(words, generator))
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (longest - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
        given: Inputs = {"input_ids": ids, "attention_mask": mask}
        if self.types is not None:
            given[self.types] = (ids == IMAGE).long() * self.typed[0]
        if sum(counts):
            given |= self.pixels(counts)
        return given


def _words(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(3, WORDS, (count,), generator=generator).tolist()


LLAVA = Case("llava", b.llava, b.same(36), b.square(48))
QWEN25 = Case(
    "qwen2.5",
    b.qwen(
        hf.Qwen2_5_VLForConditionalGeneration,
        hf.Qwen2_5_VLConfig,
        {"fullatt_block_indexes": [1], "window_size": 32},
        {},
    ),
    b.grid_image,
    b.grid_pixels,
    "mm_token_type_ids",
)
NEXT = Case(
    "llava_next",
    lambda: b.packed(False),
    lambda i: [IMAGE] * b.packed_length(False, i),
    b.packed_pixels,
)
GEMMA3 = Case("gemma3", b.gemma3, b.same(36), b.square(48), "token_type_ids")

CASES = (
    LLAVA,
    Case("pixtral", b.pixtral, b.broken, b.sized_pixels(8)),
    Case("windowed", b.windowed, b.same(36), b.square(48)),
    NEXT,
    Case(
        "llava_onevision",
        lambda: b.packed(True),
        lambda i: [IMAGE] * b.packed_length(True, i),
        b.packed_pixels,
    ),
    Case(
        "qwen2",
        b.qwen(
            hf.Qwen2VLForConditionalGeneration,
            hf.Qwen2VLConfig,
            {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
            {},
        ),
        b.grid_image,
        b.grid_pixels,
        "mm_token_type_ids",
    ),
    QWEN25,
    Case(
        "qwen3",
        b.qwen(hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLConfig, b.DEEP, {"head_dim": 16}),
        b.grid_image,
        b.grid_pixels,
        "mm_token_type_ids",
    ),
    Case(
        "qwen3_moe",
        b.qwen(hf.Qwen3VLMoeForConditionalGeneration, hf.Qwen3VLMoeConfig, b.DEEP, b.MOE),
        b.grid_image,
        b.grid_pixels,
        "mm_token_type_ids",
    ),
    Case(
        "qwen3.5",
        b.qwen(
            hf.Qwen3_5ForConditionalGeneration,
            hf.Qwen3_5Config,
            {"num_position_embeddings": 64},
            b.LINEAR,
        ),
        b.grid_image,
        b.grid_pixels,
        "mm_token_type_ids",
        recurrent=True,
    ),
    Case(
        "qwen3.5_moe",
        b.qwen(
            hf.Qwen3_5MoeForConditionalGeneration,
            hf.Qwen3_5MoeConfig,
            {"num_position_embeddings": 64},
            b.LINEAR | b.MOE | {"shared_expert_intermediate_size": 32},
        ),
        b.grid_image,
        b.grid_pixels,
        "mm_token_type_ids",
        recurrent=True,
    ),
    Case("internvl", b.internvl, b.same(32), b.tiles),
    Case("smolvlm", b.smolvlm("SmolVLM"), b.same(16), b.many_pixels(32)),
    Case("idefics3", b.smolvlm("Idefics3"), b.same(16), b.many_pixels(32)),
    Case("idefics2", b.idefics2, b.same(12), b.many_pixels(32)),
    # its prompt is type 0, seen by all of it; what follows is type 1
    Case(
        "paligemma",
        b.paligemma(False),
        b.same(36),
        b.square(48),
        "token_type_ids",
        (0, 1),
    ),
    Case(
        "paligemma2",
        b.paligemma(True),
        b.same(36),
        b.square(48),
        "token_type_ids",
        (0, 1),
        attention=("eager",),
        static=False,
    ),
    GEMMA3,
    Case("mistral3", b.mistral3, b.broken, b.sized_pixels(8)),
    Case("glm4v", b.glm4v, b.grid_image, b.grid_pixels, "mm_token_type_ids"),
)
