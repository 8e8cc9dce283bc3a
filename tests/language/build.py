"""Small vision-language models with random weights, and pictures for them."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

hf: Any = importlib.import_module("transformers")  # its configurations are typed too narrowly

IMAGE, VIDEO, START, END, WORDS = 100, 101, 102, 103, 99
VOCABULARY = 120

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": VOCABULARY,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 48,
    "patch_size": 8,
}
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
MARKS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "tie_word_embeddings": False,
}

Inputs = dict[str, Any]


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Pictures whose neighbouring patches are alike, so that some tokens can be merged."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(*shape[:-2], 3, 3, generator=generator).flatten(0, -4)
    large = nn.functional.interpolate(small, shape[-2:], mode="bilinear")
    return large.view(shape) + 0.3 * torch.randn(shape, generator=generator)


def wild(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that errors show: freshly initialised models are almost linear."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    config: Any = getattr(model, "generation_config", None)
    if config is not None:
        config.eos_token_id, config.pad_token_id = None, 0
        config.suppress_tokens = list(range(WORDS, VOCABULARY))  # no placeholder is a word
    return model.eval()


def build(head: Any, config: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return wild(head(config))


def llava() -> nn.Module:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
    )
    return build(hf.LlavaForConditionalGeneration, config)


def pixtral() -> nn.Module:
    config = hf.LlavaConfig(
        vision_config=hf.PixtralVisionConfig(**VISION | {"patch_size": 8}),
        text_config=hf.MistralConfig(**TEXT, sliding_window=None),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return build(hf.LlavaForConditionalGeneration, config)


def windowed() -> nn.Module:
    """A language model with a window shorter than the prompt."""
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.MistralConfig(**TEXT, sliding_window=16),
        image_token_id=IMAGE,
    )
    return build(hf.LlavaForConditionalGeneration, config)


def packed(onevision: bool) -> nn.Module:
    head, kind = (
        (hf.LlavaOnevisionForConditionalGeneration, hf.LlavaOnevisionConfig)
        if onevision
        else (hf.LlavaNextForConditionalGeneration, hf.LlavaNextConfig)
    )
    vision = VISION | {"patch_size": 12}
    config = kind(
        vision_config=hf.CLIPVisionConfig(**vision),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        image_grid_pinpoints=[[48, 96], [96, 48], [96, 96]],
        vision_feature_select_strategy="default",
        **({"video_token_id": VIDEO} if onevision else {}),
    )
    return build(head, config)


# height and width of the pictures that the packed hosts are given, in turn
PACKED = ((40, 96), (96, 34))


@functools.cache
def packed_length(onevision: bool, index: int) -> int:
    model: Any = packed(onevision)
    size = torch.tensor([PACKED[index % 2]])
    with torch.no_grad():
        out = model.model.get_image_features(torch.zeros(1, 3, 3, 48, 48), image_sizes=size)
    return len(out.pooler_output[0])


def packed_pixels(counts: Sequence[int]) -> Inputs:
    sizes = torch.tensor([PACKED[i % 2] for i in range(sum(counts))])
    return {"pixel_values": smooth(sum(counts), 3, 3, 48, 48), "image_sizes": sizes}


QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 8,
}


def qwen(head: Any, kind: Any, vision: Inputs, text: Inputs) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        texts = TEXT | {"rope_parameters": dict(ROPE)} | text
        return build(head, kind(vision_config=QWEN_VISION | vision, text_config=texts, **MARKS))

    return make


# patches in height and width of the pictures of Qwen's kind, in turn
GRIDS = ((8, 8), (4, 12))


def grid_image(i: int) -> list[int]:
    h, w = GRIDS[i % 2]
    return [START] + [IMAGE] * (h * w // 4) + [END]


def grid_pixels(counts: Sequence[int]) -> Inputs:
    sizes = torch.tensor([(1, *GRIDS[i % 2]) for i in range(sum(counts))])
    rows = int(sizes.prod(1).sum())
    return {"pixel_values": smooth(rows, 3, 16, 8).flatten(1), "image_grid_thw": sizes}


def internvl() -> nn.Module:
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(
            **VISION | {"image_size": [48, 48], "patch_size": [6, 6]}
        ),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return build(hf.InternVLForConditionalGeneration, config)


def smolvlm(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(hf, f"{kind}Config")(
            vision_config=VISION | {"image_size": 32, "patch_size": 4},
            text_config=hf.LlamaConfig(**TEXT),
            image_token_id=IMAGE,
            scale_factor=2,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
        return build(getattr(hf, f"{kind}ForConditionalGeneration"), config)

    return make


def idefics2() -> nn.Module:
    config = hf.Idefics2Config(
        vision_config=VISION | {"image_size": 32, "patch_size": 8},
        perceiver_config={
            "hidden_size": 64,
            "resampler_n_latents": 12,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 2,
        },
        text_config=hf.MistralConfig(**TEXT, sliding_window=None),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    return build(hf.Idefics2ForConditionalGeneration, config)


def many_pixels(side: int) -> Callable[[Sequence[int]], Inputs]:
    """``(B, images, 3, side, side)``, filled up with empty pictures."""

    def pixels(counts: Sequence[int]) -> Inputs:
        out = torch.zeros(len(counts), max(counts), 3, side, side)
        for b, count in enumerate(counts):
            if count:
                out[b, :count] = smooth(count, 3, side, side, seed=b)
        return {"pixel_values": out}

    return pixels


GEMMA: dict[str, Any] = TEXT | {"head_dim": 16}
SIGLIP: dict[str, Any] = VISION | {"vision_use_head": False}


def paligemma(second: bool) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        text: Any = (
            hf.Gemma2Config(
                **GEMMA,
                sliding_window=16,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                query_pre_attn_scalar=16,
            )
            if second
            else hf.GemmaConfig(**GEMMA)
        )
        config = hf.PaliGemmaConfig(
            vision_config=hf.SiglipVisionConfig(**SIGLIP),
            text_config=text,
            image_token_index=IMAGE,
            projection_dim=64,
            hidden_size=64,
            tie_word_embeddings=False,
        )
        config.vision_config.projection_dim = 64
        return build(hf.PaliGemmaForConditionalGeneration, config)

    return make


def gemma3() -> nn.Module:
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**SIGLIP),
        text_config=hf.Gemma3TextConfig(
            **GEMMA,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=16,
        ),
        image_token_index=IMAGE,
        mm_tokens_per_image=36,
        tie_word_embeddings=False,
    )
    return build(hf.Gemma3ForConditionalGeneration, config)


def mistral3() -> nn.Module:
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**VISION | {"patch_size": 4}),
        text_config=hf.MistralConfig(**TEXT, sliding_window=None),
        image_token_id=IMAGE,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return build(hf.Mistral3ForConditionalGeneration, config)


# height and width in tokens of the pictures of Pixtral's kind, in turn; a break ends each row
SIZES = ((6, 6), (3, 6))


def broken(i: int) -> list[int]:
    h, w = SIZES[i % 2]
    return ([IMAGE] * w + [START]) * (h - 1) + [IMAGE] * w + [END]


def sized_pixels(side: int) -> Callable[[Sequence[int]], Inputs]:
    def pixels(counts: Sequence[int]) -> Inputs:
        sizes = [(h * side, w * side) for i in range(sum(counts)) for h, w in [SIZES[i % 2]]]
        largest = max(h for h, _ in sizes), max(w for _, w in sizes)
        return {
            "pixel_values": smooth(len(sizes), 3, *largest),
            "image_sizes": torch.tensor(sizes),
        }

    return pixels


def glm4v() -> nn.Module:
    config = hf.Glm4vConfig(
        vision_config=QWEN_VISION | {"image_size": 64},
        text_config=TEXT | {"rope_parameters": dict(ROPE)},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        tie_word_embeddings=False,
    )
    return build(hf.Glm4vForConditionalGeneration, config)


def same(tokens: int) -> Callable[[int], list[int]]:
    return lambda i: [START] + [IMAGE] * tokens + [END]


def square(side: int, *more: int) -> Callable[[Sequence[int]], Inputs]:
    return lambda counts: {"pixel_values": smooth(sum(counts), *more, 3, side, side)}


def tiles(counts: Sequence[int]) -> Inputs:
    return {"pixel_values": smooth(2 * sum(counts), 3, 48, 48)}


MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "head_dim": 16,
}
DEEP: dict[str, Any] = {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
LINEAR: dict[str, Any] = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": ROPE | {"partial_rotary_factor": 1.0},
}
