"""The lab's vision-language model: a small LLaVA of transformers, its processor and weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from turbovlm.errors import ModelError, require
from turbovlm_lab import captioner, heads, lettering, scenes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

FOLDER = "vlm"
IMAGE = "<image>"
DESCRIBE = "describe the image."
PATCH = 16
PATCH_ROWS = scenes.SIDE // PATCH
IMAGE_TOKENS = PATCH_ROWS**2
ANSWER_TOKENS = captioner.CAPTION_TOKENS
# one question about one image; the tokenizer adds [CLS] and [SEP]
_CHAT = (
    "{% for part in messages[-1]['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
_UNUSED = "model.vision_tower.pooler."  # transformers adds one, which LLaVA does not read


def vlm_vocabulary() -> tuple[str, ...]:
    """Every token beside the special ones: words in small letters, then capital letters.

    Capital letters spell the printed words: the first of a word, then those that go on.
    """
    words = dict.fromkeys(
        (
            *heads.head_vocabulary(),
            "describe",
            "image",
            ".",
            "what",
            "word",
            "is",
            "printed",
            lettering.NO_WORD,
        )
    )
    return (*words, *lettering.LETTERS, *(f"##{letter}" for letter in lettering.LETTERS))


def vlm_specials() -> tuple[str, ...]:
    """The special tokens in their order."""
    return (*captioner.SPECIAL_TOKENS[:4], IMAGE)


def build_vlm(
    *, width: int = 160, layers: int = 4, heads: int = 5
) -> LlavaForConditionalGeneration:
    """An untrained model: a ViT of the captioner's sizes and a Llama, 196 image tokens."""
    transformers = require("transformers", "hf")
    vision: Any = captioner.build_captioner().config.vision_config
    tokens = (*vlm_specials(), *vlm_vocabulary())
    config = transformers.LlavaConfig(
        vision_config=transformers.ViTConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            layer_norm_eps=vision.layer_norm_eps,
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=width,
            intermediate_size=width * 27 // 10,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=512,
            pad_token_id=tokens.index("[PAD]"),
            bos_token_id=tokens.index("[CLS]"),
            eos_token_id=tokens.index("[SEP]"),
            tie_word_embeddings=True,
        ),
        image_token_index=tokens.index(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    return transformers.LlavaForConditionalGeneration(config)


def vision_weights(blip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of BLIP's vision encoder under the names of transformers' ViT: the same function.

    Args:
        blip: as `heads.shared_weights` gives them.
    """
    given = {name.removeprefix("vision_model."): x for name, x in blip.items()}
    named = {
        "embeddings.cls_token": given["embeddings.class_embedding"],
        "embeddings.position_embeddings": given["embeddings.position_embedding"],
    }
    both = {
        "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
        "layernorm": "post_layernorm",
    }
    blocks = 1 + max(int(n.split(".")[2]) for n in given if n.startswith("encoder.layers."))
    for block in range(blocks):
        ours, theirs = f"layers.{block}", f"encoder.layers.{block}"
        for kind in ("weight", "bias"):
            fused = given[f"{theirs}.self_attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), fused, strict=True):
                named[f"{ours}.attention.{name}.{kind}"] = part
        both |= {
            f"{ours}.attention.o_proj": f"{theirs}.self_attn.projection",
            f"{ours}.layernorm_before": f"{theirs}.layer_norm1",
            f"{ours}.layernorm_after": f"{theirs}.layer_norm2",
            f"{ours}.mlp.fc1": f"{theirs}.mlp.fc1",
            f"{ours}.mlp.fc2": f"{theirs}.mlp.fc2",
        }
    for ours, theirs in both.items():
        for kind in ("weight", "bias"):
            named[f"{ours}.{kind}"] = given[f"{theirs}.{kind}"]
    return named


def build_vlm_processor() -> LlavaProcessor:
    """Images to 224 px, texts to one token per word: ``"<image>what shape is the red object?"``.

    [CLS] goes before a prompt and [SEP] behind it, as in training.
    """
    transformers = require("transformers", "hf")
    tokenizer = transformers.BertTokenizer(
        vocab={token: index for index, token in enumerate((*vlm_specials(), *vlm_vocabulary()))},
        do_lower_case=False,
        bos_token="[CLS]",
        eos_token="[SEP]",
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],  # no types of tokens
        model_max_length=512,
    )
    return transformers.LlavaProcessor(
        captioner.build_caption_processor().image_processor,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=_CHAT,
    )


def load_vlm(
    folder: Path | str = captioner.WEIGHTS,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The trained model (float32, evaluation mode) and its processor.

    Args:
        folder: of the lab's weights, with the folder ``vlm`` in it.

    Raises:
        ModelError: if there are no weights.
        MissingExtra: if transformers is not installed.
    """
    path = Path(folder) / FOLDER / heads.FILE
    if not path.is_file():
        raise ModelError(f"no weights in {path}: train them by python -m turbovlm_lab.train_vlm")
    model = build_vlm()
    model.load_state_dict({name: x.float() for name, x in load_file(path).items()}, strict=False)
    return model.eval(), build_vlm_processor()


def training_record(folder: Path | str = captioner.WEIGHTS) -> dict[str, Any]:
    """How the weights in ``folder/vlm`` came about."""
    return json.loads((Path(folder) / FOLDER / "training.json").read_text("utf-8"))


def save_vlm(model: LlavaForConditionalGeneration, record: Mapping[str, Any], folder: Path) -> None:
    """Write the weights in float16, and ``record`` as ``training.json``, to ``folder/vlm``."""
    state = {
        name: x.half()
        for name, x in model.state_dict().items()
        if not name.startswith(_UNUSED) and name != "lm_head.weight"  # tied to the embeddings
    }
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    save_file(state, target / heads.FILE)
    (target / heads.FILE).chmod(0o644)
    (target / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
