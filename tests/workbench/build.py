"""Small real models and photographs on disk, as a user would have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
import torchvision
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

TINY = "test_vit"  # timm's own test architecture: 160 px, 101 tokens, 6 blocks of width 64
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
    # BLIP's default of 1e-10 makes constant models, which any merge leaves unchanged.
    "initializer_range": 0.2,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(27))]


def photos(folder: Path, number: int = 5, side: int = 40) -> Path:
    """Smooth noise, different in every image: random JPEGs of which no two are alike."""
    rng = np.random.default_rng(0)
    for index in range(number):
        path = folder / ("sub" if index % 2 else ".") / f"photo{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return folder


def noise(folder: Path, number: int, side: int = 32) -> Path:
    """Images of which no two patches are alike, so that any merge shows in the output."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(number):
        colours = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(colours).save(folder / f"noise{index}.png")
    return folder


def wild(model: torch.nn.Module) -> Any:
    """Weights large enough that merging shows in the output."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.8 / parameter[0].numel() ** 0.5)
            elif name.endswith("bias"):
                parameter.zero_()  # that of a convolution was drawn before the seed
    return model.eval()


def timm_weights(path: Path, **options: Any) -> Path:
    """A checkpoint of `TINY`."""
    save_file(wild(timm.create_model(TINY, **options)).state_dict(), path)
    return path


def _save(folder: Path, model: Any, processor: Any) -> Path:
    wild(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def vit_classifier(folder: Path) -> Path:
    config = hf.ViTConfig(**SIZES, id2label={index: f"kind {index}" for index in range(7)})
    return _save(folder, hf.ViTForImageClassification(config), _square(hf.ViTImageProcessor))


def vit_backbone(folder: Path) -> Path:
    return _save(folder, hf.ViTModel(hf.ViTConfig(**SIZES)), _square(hf.ViTImageProcessor))


def deit_backbone(folder: Path) -> Path:
    return _save(folder, hf.DeiTModel(hf.DeiTConfig(**SIZES)), _square(hf.ViTImageProcessor))


def dinov2_backbone(folder: Path) -> Path:
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    return _save(folder, hf.Dinov2Model(hf.Dinov2Config(**sizes)), _square(hf.ViTImageProcessor))


def clip(folder: Path) -> Path:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    config = hf.CLIPConfig(
        vision_config=SIZES, text_config={**text, "num_attention_heads": 2}, projection_dim=24
    )
    return _save(folder, hf.CLIPModel(config), _square(hf.ViTImageProcessor))


def siglip(folder: Path) -> Path:
    text = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    config = hf.SiglipConfig(vision_config=SIZES, text_config={**text, "num_attention_heads": 2})
    return _save(folder, hf.SiglipModel(config), _square(hf.SiglipImageProcessor))


def blip(folder: Path) -> Path:
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    config = hf.BlipConfig(vision_config=SIZES, text_config=text, initializer_range=0.2)
    words = {word: index for index, word in enumerate(WORDS)}
    processor = hf.BlipProcessor(_square(hf.BlipImageProcessor), hf.BertTokenizer(vocab=words))
    return _save(folder, hf.BlipForConditionalGeneration(config), processor)


def blip2(folder: Path) -> Path:
    qformer = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "encoder_hidden_size": 32,
    }
    text = hf.OPTConfig(
        vocab_size=len(WORDS) + 1,
        hidden_size=32,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    config = hf.Blip2Config(
        vision_config=SIZES,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=4,
        image_token_index=len(WORDS),
    )
    words = {word: index for index, word in enumerate(WORDS)}
    model = hf.Blip2ForConditionalGeneration(config)
    _save(folder, model, _square(hf.BlipImageProcessor))
    hf.BertTokenizer(vocab=words).save_pretrained(folder)
    return folder


def encoder_decoder(folder: Path) -> Path:
    """A ViT and a BERT that writes, as many captioners of the hub are built."""
    text = hf.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, initializer_range=0.2, is_decoder=True, add_cross_attention=True,
        bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    model = hf.VisionEncoderDecoderModel(
        encoder=hf.ViTModel(hf.ViTConfig(**SIZES), add_pooling_layer=False),
        decoder=hf.BertLMHeadModel(text),
    )
    model.generation_config = hf.GenerationConfig(
        decoder_start_token_id=2, eos_token_id=3, pad_token_id=0
    )
    _save(folder, model, _square(hf.ViTImageProcessor))
    hf.BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %} ASSISTANT:{% endfor %}"
)


def llava(folder: Path, chat: str | None = CHAT) -> Path:
    """A small LLaVA with random weights: CLIP at 32 px, 64 patches, and a Llama of 27 words."""
    words = {word: n for n, word in enumerate([*WORDS, "<image>", "USER:", "ASSISTANT:"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]"
    )
    tokens.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text: dict[str, Any] = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**SIZES),
        text_config=hf.LlamaConfig(**text),
        image_token_index=words["<image>"],
        vision_feature_layer=-2,
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False),
        tokens,
        patch_size=4,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=chat,
    )
    return _save(folder, hf.LlavaForConditionalGeneration(config), processor)


def _square(kind: Any) -> Any:
    return kind(size={"height": 32, "width": 32})


_TEXT = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
_PAIR: dict[str, Any] = {
    "vision_config": SIZES,
    "text_config": {**_TEXT, "num_attention_heads": 2, "bos_token_id": 2, "eos_token_id": 3},
    "projection_dim": 24,
}
_NO_MLP = {key: value for key, value in SIZES.items() if key != "intermediate_size"}

TOWERS: dict[str, Callable[[], Any]] = {
    "vit_msn": lambda: hf.ViTMSNModel(hf.ViTMSNConfig(**SIZES)),
    "dinov2_with_registers": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**_NO_MLP)
    ),
    "dinov3_vit": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SIZES, num_register_tokens=4)),
    "clip_vision_model": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES)),
    "metaclip_2": lambda: hf.MetaClip2Model(hf.MetaClip2Config(**_PAIR)),
    "metaclip_2_vision_model": lambda: hf.MetaClip2VisionModel(hf.MetaClip2VisionConfig(**SIZES)),
    "siglip_vision_model": lambda: hf.SiglipVisionModel(
        hf.SiglipVisionConfig(**SIZES, vision_use_head=False)
    ),
    "aimv2": lambda: hf.Aimv2Model(hf.Aimv2Config(**_PAIR)),
    "aimv2_vision_model": lambda: hf.Aimv2VisionModel(
        hf.Aimv2VisionConfig(**SIZES, use_head=False)
    ),
    "altclip": lambda: hf.AltCLIPModel(hf.AltCLIPConfig(**_PAIR)),
    "altclip_vision_model": lambda: hf.AltCLIPVisionModel(hf.AltCLIPVisionConfig(**SIZES)),
    "chinese_clip": lambda: hf.ChineseCLIPModel(hf.ChineseCLIPConfig(**_PAIR)),
    "chinese_clip_vision_model": lambda: hf.ChineseCLIPVisionModel(
        hf.ChineseCLIPVisionConfig(**SIZES)
    ),
    "internvl_vision": lambda: hf.InternVLVisionModel(
        hf.InternVLVisionConfig(**{**SIZES, "image_size": [32, 32], "patch_size": [4, 4]})
    ),
}


def tower(folder: Path, kind: str) -> Path:
    """An image encoder of `TOWERS`, or a pair of an image and a text encoder."""
    return _save(folder, TOWERS[kind](), _square(hf.ViTImageProcessor))


def torchvision_vit(**options: Any) -> Any:
    """A small VisionTransformer of torchvision: 64 px, patches of 16."""
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    return wild(torchvision.models.VisionTransformer(64, 16, **sizes, **options))


OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "layers": 4, "width": 32, "head_width": 16, "patch_size": 4, "image_size": 32
    },
    "text_cfg": {"layers": 1, "width": 16, "heads": 2, "vocab_size": 40, "context_length": 8},
}  # fmt: skip


def open_clip_configs(folder: Path) -> Path:
    """Two small architectures for open_clip's registry: a CLIP, and a CoCa, which pools by
    attention and gives its decoder the tokens too."""
    folder.mkdir()
    coca = {
        **OPEN_CLIP,
        "vision_cfg": {
            **OPEN_CLIP["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": {**OPEN_CLIP["text_cfg"], "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"width": 16, "context_length": 8, "heads": 2, "layers": 1},
        "custom_text": True,
    }  # fmt: skip
    (folder / "tiny-clip.json").write_text(json.dumps(OPEN_CLIP))
    (folder / "tiny-coca.json").write_text(json.dumps(coca))
    return folder


def open_clip_weights(path: Path, name: str) -> Path:
    """A checkpoint of one of them, once its configuration is in the registry."""
    save_file(wild(open_clip.create_model(name)).state_dict(), path)
    return path
