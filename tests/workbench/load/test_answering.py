from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import turbovlm
from tests.workbench import build
from tests.workbench.load.test_matching import BERT, VISION, pixels, save
from turbovlm import Merge
from turbovlm_workbench.load.answering import AnsweringModel
from turbovlm_workbench.load.by_task import load_answering, load_statements
from turbovlm_workbench.paper.minigptv2 import MiniGPTv2Config, MiniGPTv2ForConditionalGeneration
from turbovlm_workbench.paper.minigptv2_prompt import image_processor
from turbovlm_workbench.paper.nlvr import BlipForNlvr, NlvrConfig

QUESTIONS = [
    "word3 word4 word5", "word9", "word1 word7 word2 word8 word20 word11", "word6 word13 word2"
]  # fmt: skip


def blip(folder: Path, more: int = 0) -> Path:
    text = {**BERT, "vocab_size": len(build.WORDS) + more}
    config = hf.BlipConfig(vision_config=VISION, text_config=text)
    return save(folder, hf.BlipForQuestionAnswering(config))


def blip2(folder: Path, reads: bool) -> Path:
    """With OPT, which goes on after the prompt, or with T5, which reads it first."""
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    opt = hf.OPTConfig(
        **sizes, hidden_size=32, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    sizes["decoder_start_token_id"] = 0
    t5 = hf.T5Config(**sizes, d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2)
    config = hf.Blip2Config(
        vision_config=VISION,
        qformer_config={**BERT, "encoder_hidden_size": 32},
        text_config=(t5 if reads else opt).to_dict(),
        num_query_tokens=4,
        image_token_index=len(WORDS) - 1,
    )
    return save(folder, hf.Blip2ForConditionalGeneration(config), WORDS)


# BLIP-2's prompt, and the token that stands for the image
WORDS = [*build.WORDS, "question", "short", "answer", ":", "<image>"]
LETTERS = ["<unk>", "<s>", "</s>", *map(chr, range(33, 127)), "▁"]


def minigptv2(folder: Path) -> Path:
    config = MiniGPTv2Config(
        vision_config=VISION,
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "vocab_size": len(LETTERS),
        },
    )  # fmt: skip
    build.wild(MiniGPTv2ForConditionalGeneration(config)).save_pretrained(folder)
    image_processor(32).save_pretrained(folder)
    ids = {letter: index for index, letter in enumerate(LETTERS)}
    hf.LlamaTokenizer(vocab=ids).save_pretrained(folder)
    return folder


def by_blip(answerer: AnsweringModel, image: Tensor, question: str) -> Tensor:
    inputs = answerer.tokenizer(question, return_tensors="pt")
    return answerer.model.generate(
        inputs.input_ids, image, inputs.attention_mask, num_beams=3, max_new_tokens=9
    )


def by_blip2(answerer: AnsweringModel, image: Tensor, question: str) -> Tensor:
    """Through the host's processor."""
    processor: Any = hf.Blip2Processor(
        hf.BlipImageProcessor(), answerer.tokenizer, num_query_tokens=4
    )
    prompt = f"Question: {question} Short answer:"
    photo = torch.zeros(3, 32, 32, dtype=torch.uint8)
    inputs = processor(images=photo, text=prompt, return_tensors="pt")
    inputs["pixel_values"] = image
    inputs.pop("token_type_ids", None)
    ids = answerer.model.generate(**inputs, num_beams=5, length_penalty=-1.0, max_new_tokens=10)
    decodes = not answerer.model.language_model.config.is_encoder_decoder
    return ids[:, inputs["input_ids"].shape[1] :] if decodes else ids


def by_minigptv2(answerer: AnsweringModel, image: Tensor, question: str) -> Tensor:
    instruction = f"Based on the image, respond to this question with a short answer: {question}"
    start, end = (
        answerer.tokenizer.encode(text, add_special_tokens=False)
        for text in ("[INST] <Img>", f"</Img> [vqa] {instruction} [/INST]")
    )
    ids = torch.tensor([[1, 1, *start, -1, *end]])
    return answerer.model.generate(image, ids, max_new_tokens=20, do_sample=False)


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[AnsweringModel, Tensor, str], Tensor]]] = {
    "blip": (blip, by_blip),
    "blip2 opt": (lambda folder: blip2(folder, False), by_blip2),
    "blip2 t5": (lambda folder: blip2(folder, True), by_blip2),
    "minigptv2": (minigptv2, by_minigptv2),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_answers_are_those_of_generate(tmp_path: Path, kind: str) -> None:
    """A batch with questions of different lengths, against the host's one by one."""
    make, host = KINDS[kind]
    answerer = load_answering(str(make(tmp_path / "model")))
    assert (answerer.name, answerer.model.training) == (str(tmp_path / "model"), False)
    if kind == "blip2 opt":  # its answers then end early enough for their length to count
        answerer.model.language_model.lm_head.weight[3] *= 4
    images = pixels(4)
    answers = answerer.answer(images, QUESTIONS)
    expected = [
        answerer.tokenizer.batch_decode(
            host(answerer, images[i : i + 1], question), skip_special_tokens=True
        )[0].strip()
        for i, question in enumerate(QUESTIONS)
    ]
    assert answers == expected
    assert len(set(answers)) > 2
    with turbovlm.applied(answerer.model, Merge(r=12)) as run:
        merged = answerer.answer(images, QUESTIONS)
        assert run.trace.start > run.trace.tokens[-1]
    assert len(merged) == 4
    assert merged != answers
    assert answerer.answer(images, QUESTIONS) == answers


@torch.inference_mode()
def test_blip_of_the_published_vocabulary_reads_enc_before_a_question(tmp_path: Path) -> None:
    answerer = load_answering(str(blip(tmp_path, more=2)))
    image, question = pixels(1), QUESTIONS[0]
    inputs = answerer.tokenizer(question, return_tensors="pt")
    options = {"num_beams": 3, "max_new_tokens": 9}
    plain = answerer.model.generate(inputs.input_ids, image, **options)
    inputs.input_ids[:, 0] = len(build.WORDS) + 1
    ids = answerer.model.generate(inputs.input_ids, image, **options)
    assert ids.tolist() != plain.tolist()
    assert answerer.answer(image, [question]) == [
        answerer.tokenizer.decode(ids[0], skip_special_tokens=True)
    ]


def nlvr(folder: Path) -> Path:
    config = NlvrConfig(vision_config=VISION, text_config=BERT, enc_token_id=4)
    return save(folder, BlipForNlvr(config))


@torch.inference_mode()
def test_a_judge_says_what_its_model_says(tmp_path: Path) -> None:
    judge = load_statements(str(nlvr(tmp_path / "model")))
    assert not judge.model.training
    images = pixels(6)
    left, right, statements = images[:3], images[3:], QUESTIONS[:3]
    logits = judge.judge(left, right, statements)
    assert logits.shape == (3, 2)
    assert logits.std() > 1e-3
    for index, statement in enumerate(statements):
        inputs = judge.tokenizer(statement, return_tensors="pt")
        pair = torch.stack([left[index], right[index]])[None]
        alone = judge.model(pair, inputs.input_ids, inputs.attention_mask).logits[0]
        torch.testing.assert_close(logits[index], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(judge.judge(right, left, statements), logits, atol=1e-4)
    with turbovlm.applied(judge.model, Merge(r=8)) as run:
        merged = judge.judge(left, right, statements)
        assert run.trace.start > run.trace.tokens[-1]
    assert (merged - logits).abs().max() > 1e-4
