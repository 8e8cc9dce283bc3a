"""Lessons compute what the models compute, only faster, and teach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from torch import Tensor

pytest.importorskip("transformers")

from turbovlm_lab import captioner, heads
from turbovlm_lab.grammar import describe
from turbovlm_lab.kinds import Kind
from turbovlm_lab.lessons import LESSONS, EncodedScenes
from turbovlm_lab.lessons.base import Attended, guided_reading, tokens_to_attend
from turbovlm_lab.questions import ask
from turbovlm_lab.scenes import scene, seed_of_split
from turbovlm_lab.train_heads import HeadTraining, encode_scenes, main, train_head

FEW = 16


@pytest.fixture(scope="module", params=heads.HEADS)
def lesson(request: pytest.FixtureRequest) -> Any:
    model, processor = heads.load_head(request.param)
    return LESSONS[request.param](model, processor.tokenizer)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    images = [scene(seed_of_split("test", index)).image for index in range(FEW)]
    processor: Any = heads.build_head_processor()
    return processor(images=images, return_tensors="pt")["pixel_values"]


def bank_of(lesson: Any) -> EncodedScenes:
    return encode_scenes(lesson.see, "test", 0, FEW, lambda _: None)


def test_sharing_images_changes_nothing() -> None:
    torch.manual_seed(0)
    model: Any = heads.build_head("vqa")
    encoder = model.text_encoder
    images = torch.randn(3, 20, 160)
    index = torch.tensor([2, 0, 2, 2, 1])
    ids = torch.randint(5, 60, (5, 7))
    here = torch.zeros(5, 1, 20, dtype=torch.bool)
    here[:, :, :4] = True
    plain = encoder(ids, encoder_hidden_states=images[index]).last_hidden_state
    looks = {layer.crossattention.self: Attended(index, here) for layer in encoder.encoder.layer}
    with guided_reading(looks) as missed:
        shared = encoder(ids, encoder_hidden_states=images).last_hidden_state
    torch.testing.assert_close(shared, plain)
    # untrained attention is nearly even over the 20 tokens, of which 4 are wanted
    assert len(missed) == 2
    torch.testing.assert_close(torch.stack(missed).exp(), torch.full((2,), 5.0), rtol=0.2, atol=0)
    after = encoder(ids, encoder_hidden_states=images[index]).last_hidden_state
    torch.testing.assert_close(after, plain)


def test_wanted_tokens_show_the_kind(lesson: Any) -> None:
    encoded = bank_of(lesson)
    kinds = [Kind(colour=objects[-1].colour) for objects in encoded.objects]
    tokens = tokens_to_attend(encoded, np.arange(FEW), kinds)
    assert tokens.shape == (FEW, 197)
    assert not tokens[:, 0].any()
    for row, kind, objects in zip(tokens, kinds, encoded.objects, strict=True):
        for top, left in (row[1:].view(14, 14).nonzero() * 16).tolist():
            (one,) = [
                o
                for o in objects
                if o.left < left + 16
                and left < o.left + o.side
                and o.top < top + 16
                and top < o.top + o.side
            ]
            assert one.colour == kind.colour
        assert row.any()


def test_answers_scored_word_by_word_are_those_of_generate(pixels: Tensor) -> None:
    model: Any
    model, processor = heads.load_head("vqa")
    lesson: Any = LESSONS["vqa"](model, processor.tokenizer)
    pixels = pixels.roll(1, 0)  # questions about other scenes, so that many answers are wrong
    states = model.vision_model(pixels).last_hidden_state
    encoded = bank_of(lesson)._replace(states=states.detach())
    encoded = encoded._replace(objects=encoded.objects[:6])
    right = []
    for place, objects in enumerate(encoded.objects):
        asked = ask(objects, place)
        text: Any = processor.tokenizer([q.text for q in asked], padding=True, return_tensors="pt")
        tokens = model.generate(
            text["input_ids"],
            pixels[place : place + 1].expand(len(asked), -1, -1, -1),
            attention_mask=text["attention_mask"],
            max_new_tokens=5,
        )
        said = processor.batch_decode(tokens, skip_special_tokens=True)
        right += [a == q.answer for a, q in zip(said, asked, strict=True)]
    with torch.no_grad():
        scores = lesson.scores(encoded)
    assert 0.1 < np.mean(right) < 0.9
    assert scores["right"] == pytest.approx(np.mean(right))


def test_embeddings_and_matches_are_those_of_the_model(pixels: Tensor) -> None:
    model: Any
    model, processor = heads.load_head("retrieval")
    lesson: Any = LESSONS["retrieval"](model, processor.tokenizer)
    encoded = bank_of(lesson)
    captions = [describe(objects) for objects in encoded.objects]
    text: Any = processor.tokenizer(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = lesson.see(pixels)
        whole = model(text["input_ids"], pixels, attention_mask=text["attention_mask"])
        apart = model(
            text["input_ids"], pixels, attention_mask=text["attention_mask"], use_itm_head=False
        )
        alike = lesson._image(states) @ lesson._text(captions).T
        logits, _ = lesson._match(encoded, np.arange(FEW), captions, states)
    torch.testing.assert_close(apart.itm_score, alike, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.itm_score, logits, rtol=1e-4, atol=1e-4)


def test_a_loss_reaches_all_that_is_trained(lesson: Any) -> None:
    encoded = bank_of(lesson)
    lesson.model.zero_grad()
    lesson.loss(encoded, RandomState(0)).backward()
    parameters = lesson.parameters()
    # biases of keys shift all scores alike, so that matrices alone must have a gradient
    still = [
        name
        for name, parameter in parameters.items()
        if parameter.ndim > 1 and (parameter.grad is None or not parameter.grad.any())
    ]
    assert still == []
    shared = {name for name in parameters if name.startswith("vision_model.")}
    assert shared == lesson.trained


@pytest.mark.parametrize("head", heads.HEADS)
def test_a_run_writes_a_head_that_loads(head: str, tmp_path: Path) -> None:
    source = captioner.WEIGHTS / "model.safetensors"
    (tmp_path / source.name).symlink_to(source)
    if head != "vqa":  # from which the others start
        (tmp_path / "vqa").symlink_to(captioner.WEIGHTS / "vqa")
    seen: list[tuple[int, float]] = []
    plan = HeadTraining(head, minutes=0.02, scenes=64, check_scenes=FEW, out=tmp_path)
    scores = train_head(plan, lambda step, done, text: seen.append((step, done)))
    assert seen[-1][1] == 1
    assert {"vqa": "right", "nlvr": "consistent", "retrieval": "itm text"}[head] in scores
    trained, _ = heads.load_head(head, tmp_path)
    shipped = heads.load_head(head)[0].state_dict()
    shared = heads.shared_weights()
    own = {name for name, x in trained.state_dict().items() if not torch.equal(x, shipped[name])}
    assert own
    last = {name for name in shared if ".encoder.layers.7." in name}
    assert own & set(shared) == (last if head == "retrieval" else set())


def test_the_command_needs_a_head(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["captions"])
    assert "retrieval" in capsys.readouterr().err
