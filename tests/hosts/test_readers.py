"""Whole models around a patched tower: what reads it must still fit and generate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import turbovlm
from tests.hosts.zoo import INTERNVL, SIZES, padding, pixels, wild, words
from turbovlm import Merge

LLAMA: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 12,
    "vocab_size": 100,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IMAGE = 99


def prompt(images: int) -> Tensor:
    """``images`` placeholders between words, twice."""
    return torch.tensor([[1, 5] + [IMAGE] * images + [6, 7]] * 2)


def llava() -> tuple[Any, dict[str, Tensor]]:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**SIZES),
        text_config=hf.LlamaConfig(**LLAMA),
        image_token_index=IMAGE,
    )
    inputs = {"input_ids": prompt(64), "pixel_values": pixels()}
    return hf.LlavaForConditionalGeneration(config), inputs


def paligemma() -> tuple[Any, dict[str, Tensor]]:
    config = hf.PaliGemmaConfig(
        vision_config={**SIZES, "model_type": "siglip_vision_model", "projection_dim": 48},
        text_config={**LLAMA, "model_type": "gemma"},
        projection_dim=48,
        image_token_index=IMAGE,
    )
    inputs = {"input_ids": prompt(64), "pixel_values": pixels()}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return hf.PaliGemmaForConditionalGeneration(config), inputs


def internvl() -> tuple[Any, dict[str, Tensor]]:
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**INTERNVL),
        text_config=hf.LlamaConfig(**LLAMA),
        image_token_id=IMAGE,
    )
    inputs = {"input_ids": prompt(16), "pixel_values": pixels()}  # pixel shuffle joins 2 x 2
    return hf.InternVLForConditionalGeneration(config), inputs


def smolvlm() -> tuple[Any, dict[str, Tensor]]:
    config = hf.SmolVLMConfig(
        vision_config=dict(SIZES),
        text_config=hf.LlamaConfig(**LLAMA),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    seen = padding(64, 40).view(2, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return hf.SmolVLMForConditionalGeneration(config), {
        "input_ids": prompt(16),
        "pixel_values": pixels()[:, None],
        "pixel_attention_mask": seen,
    }


def idefics3() -> tuple[Any, dict[str, Tensor]]:
    config = hf.Idefics3Config(
        vision_config=dict(SIZES),
        text_config=hf.LlamaConfig(**LLAMA),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    inputs = {"input_ids": prompt(16), "pixel_values": pixels()[:, None]}
    return hf.Idefics3ForConditionalGeneration(config), inputs


def instructblip() -> tuple[Any, dict[str, Tensor]]:
    config = hf.InstructBlipConfig(
        vision_config=dict(SIZES),
        qformer_config={
            **{k: LLAMA[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers")},
            "num_attention_heads": 4,
            "encoder_hidden_size": 48,
            "vocab_size": 100,
        },
        text_config={**LLAMA, "model_type": "llama"},
        num_query_tokens=8,
        image_token_index=IMAGE,
    )
    inputs = {"input_ids": prompt(8), "pixel_values": pixels()}
    inputs["qformer_input_ids"] = torch.tensor([[5, 6, 7]] * 2)
    return hf.InstructBlipForConditionalGeneration(config), inputs


READERS = (llava, paligemma, internvl, smolvlm, idefics3, instructblip)


@pytest.mark.parametrize("build", READERS, ids=lambda f: f.__name__)
@torch.no_grad()
def test_a_whole_model_generates_with_merging(
    build: Callable[[], tuple[Any, dict[str, Tensor]]],
) -> None:
    model, inputs = build()
    wild(model)
    host = model(**inputs).logits
    turbovlm.apply(model, Merge(r=0))
    assert torch.equal(model(**inputs).logits, host)
    turbovlm.remove(model)
    with turbovlm.applied(model, Merge(r=6)) as run:
        merged = model(**inputs).logits
        start = run.trace.start
        assert run.trace.tokens == tuple(start - 6 * (block + 1) for block in range(4))
        written = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert merged.shape == host.shape
    assert (merged - host).abs().max() > 1e-3
    assert written.shape[0] == 2
    assert torch.equal(model(**inputs).logits, host)


BLIP_TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "encoder_hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "pad_token_id": 0,
    "projection_dim": 16,
}


def blip(kind: type[Any]) -> Any:
    config = hf.BlipConfig(
        vision_config={**SIZES, "initializer_range": 0.02},
        text_config=BLIP_TEXT,
        projection_dim=16,
        image_text_hidden_size=16,
    )
    return wild(kind(config))


def blip2_retrieval() -> Any:
    config = hf.Blip2Config(
        vision_config=dict(SIZES),
        qformer_config={
            **{k: BLIP_TEXT[k] for k in ("hidden_size", "encoder_hidden_size", "vocab_size")},
            **{k: BLIP_TEXT[k] for k in ("intermediate_size", "num_attention_heads")},
            "num_hidden_layers": 2,
            "use_qformer_text_input": True,
        },
        text_config={**LLAMA, "model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 48},
        num_query_tokens=8,
        image_text_hidden_size=16,
    )
    return wild(hf.Blip2ForImageTextRetrieval(config))


def matching(model: Any, itm: bool) -> Tensor:
    """Similarities (ITC), or the answers of the matching head (ITM), which re-ranks."""
    ids = words()[:, :7]
    name = "use_itm_head" if isinstance(model, hf.BlipForImageTextRetrieval) else None
    flag = {name: itm} if name else {"use_image_text_matching_head": itm}
    result = model(
        input_ids=ids, pixel_values=pixels(), attention_mask=torch.ones_like(ids), **flag
    )
    return result[0] if name else result.logits_per_image


@pytest.mark.parametrize("itm", [False, True], ids=["itc", "itm"])
@pytest.mark.parametrize(
    "build",
    [lambda: blip(hf.BlipForImageTextRetrieval), blip2_retrieval],
    ids=["blip", "blip2"],
)
@torch.no_grad()
def test_retrieval_and_matching(build: Callable[[], Any], itm: bool) -> None:
    model = build()
    host = matching(model, itm)
    turbovlm.apply(model, Merge(r=0))
    assert torch.equal(matching(model, itm), host)
    turbovlm.remove(model)
    with turbovlm.applied(model, Merge(r=8)) as run:
        merged = matching(model, itm)
        assert run.trace.tokens == (57, 49, 41, 33)
    assert merged.shape == host.shape
    assert not torch.allclose(merged, host, atol=1e-5)
    assert torch.equal(matching(model, itm), host)


@torch.no_grad()
def test_visual_question_answering() -> None:
    model = blip(hf.BlipForQuestionAnswering)
    ids = words()[:, :6]
    inputs = {"input_ids": ids, "pixel_values": pixels(), "attention_mask": torch.ones_like(ids)}
    host = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5)
    question = model.vision_model(pixels()).last_hidden_state
    with turbovlm.applied(model, Merge(r=8)) as run:
        assert model.generate(**inputs, max_new_tokens=5, min_new_tokens=5).shape == host.shape
        assert run.trace.tokens[-1] == 33
        assert model.vision_model(pixels()).last_hidden_state.shape[1] == 33
    assert torch.equal(model.generate(**inputs, max_new_tokens=5, min_new_tokens=5), host)
    # the question encoder is a text tower of its own
    turbovlm.apply(model.text_encoder, Merge(r=1))
    states = model.text_encoder(ids, encoder_hidden_states=question).last_hidden_state
    assert states.shape == (2, 6, 48)
    turbovlm.remove(model)


@pytest.mark.parametrize(("width", "depth"), [(768, 12), (1024, 24)], ids=["ViT-B", "ViT-L"])
def test_both_published_sizes_of_blip(width: int, depth: int) -> None:
    """Full size, shapes alone: the head width of 64 and 384 px of the published checkpoints."""
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
    }  # fmt: skip
    with torch.device("meta"):
        config = hf.BlipConfig(vision_config=vision)
        model: Any = hf.BlipForConditionalGeneration(config).eval()
        images = torch.zeros(1, 3, 384, 384)
    with turbovlm.applied(model, Merge(r=20)) as run, torch.no_grad():
        tokens = model.vision_model(images).last_hidden_state
    assert tokens.shape == (1, 577 - 20 * depth, width)
    assert len(run.trace.tokens) == depth


@torch.no_grad()
def test_whisper_transcribes_with_merging() -> None:
    config = hf.WhisperConfig(
        d_model=48, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=96,
        decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=96, max_source_positions=60,
        max_target_positions=32, num_mel_bins=16, vocab_size=100, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=3, begin_suppress_tokens=None,
    )  # fmt: skip
    model: Any = wild(hf.WhisperForConditionalGeneration(config))
    sound = torch.randn(2, 16, 120, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5}
    host = model.generate(sound, **options)
    logits = model(sound, decoder_input_ids=words()[:, :5]).logits
    with turbovlm.applied(model, Merge(r=6)) as run:
        merged = model(sound, decoder_input_ids=words()[:, :5]).logits
        assert run.trace.tokens == (54, 48, 42, 36)
        assert model.generate(sound, **options).shape == host.shape
    assert (merged - logits).abs().max() > 1e-3


@torch.no_grad()
def test_sentence_means_weigh_by_size() -> None:
    """A mean over the mask, as sentence encoders take it, sees each group by its size."""
    model = wild(hf.BertModel(hf.BertConfig(**{**LLAMA, "vocab_size": 100, "head_dim": None})))
    ids, real = words(), padding(40, 30)
    with turbovlm.applied(model, Merge(r=3)) as run:
        states = model(input_ids=ids, attention_mask=real.long()).last_hidden_state
        sizes, kept = run.trace.sizes, run.trace.survivors()
    assert sizes is not None
    mean = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    short = torch.stack([s[at] for s, at in zip(states, kept, strict=True)])
    weighed = (short * sizes[..., None]).sum(1) / sizes.sum(1, keepdim=True)
    torch.testing.assert_close(mean, weighed, atol=1e-5, rtol=1e-5)
