"""Small models on disk that take pictures in their own size or in tiles, with their processors."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.workbench.build import SIZES, WORDS, _save

hf: Any = importlib.import_module("transformers")  # its configurations are typed too narrowly

SHAPES = ((48, 80), (64, 64), (96, 48), (48, 80))  # height and width of the pictures
START, IMAGE, VIDEO, END = "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"
TILED = "<image>"
MARKS = (START, IMAGE, VIDEO, END, TILED)
_CHAT = (
    "{{% for m in messages %}}USER: {{% for c in m['content'] %}}"
    "{{% if c['type'] == 'image' %}}{} {{% else %}}{{{{ c['text'] }}}}{{% endif %}}"
    "{{% endfor %}} ASSISTANT:{{% endfor %}}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def pictures(folder: Path) -> list[Path]:
    """Noise of different shapes, coarse enough that neighbours are alike."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for index, (height, width) in enumerate(SHAPES):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        path = folder / f"picture{index}.png"
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def _tokenizer() -> tuple[Any, dict[str, int]]:
    words = {word: n for n, word in enumerate([*WORDS, *MARKS, "USER:", "ASSISTANT:"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]"
    )
    tokens.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return tokens, words


def _quiet(model: Any, words: dict[str, int]) -> Any:
    """No placeholder is a word of an answer."""
    model.generation_config.suppress_tokens = [words[mark] for mark in MARKS]
    return model


def qwen25(folder: Path) -> Path:
    """A small Qwen2.5-VL: patches of 8 px, windows of 32, as many as the picture has."""
    tokens, words = _tokenizer()
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
        "out_hidden_size": 32, "patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = hf.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=TEXT | {"vocab_size": len(words), "rope_parameters": rope},
        image_token_id=words[IMAGE],
        video_token_id=words[VIDEO],
        vision_start_token_id=words[START],
        vision_end_token_id=words[END],
        tie_word_embeddings=False,
    )
    limits = {"shortest_edge": 16 * 16, "longest_edge": 96 * 96}
    images = hf.Qwen2VLImageProcessor(patch_size=8, size=limits)
    videos = hf.Qwen2VLVideoProcessor(patch_size=8, size=limits)
    chat = _CHAT.format(f"{START} {IMAGE} {END}")
    processor = hf.Qwen2_5_VLProcessor(images, tokens, videos, chat_template=chat)
    return _save(folder, _quiet(hf.Qwen2_5_VLForConditionalGeneration(config), words), processor)


def llava_next(folder: Path) -> Path:
    """A small LLaVA-NeXT: CLIP at 32 px, tiles of a picture and a thumbnail."""
    tokens, words = _tokenizer()
    points = [[32, 64], [64, 32], [64, 64]]
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**SIZES),
        text_config=hf.LlamaConfig(**TEXT, vocab_size=len(words)),
        image_token_id=words[TILED],
        image_grid_pinpoints=points,
        vision_feature_layer=-2,
    )
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=points,
    )  # fmt: skip
    processor = hf.LlavaNextProcessor(
        images,
        tokens,
        patch_size=4,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=_CHAT.format(TILED),
        image_token=TILED,
    )
    return _save(folder, _quiet(hf.LlavaNextForConditionalGeneration(config), words), processor)
