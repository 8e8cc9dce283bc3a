"""The vision-language model: its parts are what they say, and the shipped one reads scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.random import RandomState
from torch import Tensor

import turbovlm
from turbovlm.errors import ModelError

pytest.importorskip("transformers")

from turbovlm_lab import captioner, heads, reading, seeing, telling, vlm
from turbovlm_lab.data import pixels
from turbovlm_lab.lettering import worded_scene
from turbovlm_lab.scenes import Scene, seed_of_split
from turbovlm_lab.train_vlm import VlmTraining, main, train_vlm

SCENES = [worded_scene(seed_of_split("test", index)) for index in range(12)]
TOLD = [telling.exam(s.objects, s.word, index) for index, s in enumerate(SCENES)]


@pytest.fixture(scope="module")
def processor() -> Any:
    return vlm.build_vlm_processor()


@pytest.fixture(scope="module")
def shipped() -> Any:
    return vlm.load_vlm()[0]


@pytest.fixture(autouse=True)
def _threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def images(scenes: list[Scene]) -> Tensor:
    return pixels(torch.stack([torch.from_numpy(scene.image) for scene in scenes]))


def test_the_vision_encoder_starts_as_the_captioners() -> None:
    blip: Any = captioner.load_captioner()[0]
    model: Any = vlm.build_vlm()
    tower = model.model.vision_tower
    tower.load_state_dict(vlm.vision_weights(heads.shared_weights()), strict=False)
    x = images(SCENES[:2])
    with torch.no_grad():
        expected = blip.vision_model(x).last_hidden_state
        torch.testing.assert_close(tower(x).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_the_tokenizer_and_the_lessons_agree(processor: Any) -> None:
    for told in (one for some in TOLD for one in some):
        start, *prompt, end = processor.tokenizer(told.prompt)["input_ids"]
        assert (start, end) == (telling.START, telling.END)
        assert prompt == telling.vlm_tokens(told.prompt)
        answer = telling.vlm_tokens(told.answer)
        assert processor.tokenizer(told.answer)["input_ids"][1:-1] == answer
        assert processor.tokenizer.unk_token_id not in (*prompt, *answer)
        assert processor.decode(answer).replace(" ,", ",") == told.answer
        assert told.seen.shape == (len(answer), vlm.IMAGE_TOKENS)


def test_answers_are_read_where_they_are_seen() -> None:
    scene = next(s for s in SCENES if s.word and len(s.objects) > 1)
    letters = telling.tell_word(scene.word)
    assert letters.seen.sum(1).tolist() == [1] * len(letters.answer)
    caption = telling.tell_caption(scene.objects)
    clause, order = caption.answer.split(", "), 0
    words = [len(telling.vlm_tokens(text)) for text in clause]
    for number, count in enumerate(words):
        first = order + (number > 0)  # the comma belongs to the next clause
        assert (caption.seen[first : first + count] == caption.seen[first]).all()
        order = first + count
    assert not (caption.seen[0] & caption.seen[-1]).any()


def test_the_processor_makes_a_prompt(processor: Any) -> None:
    made = processor(images=[SCENES[0].image], text=["<image>what word is printed?"],
                     return_tensors="pt")  # fmt: skip
    words = telling.vlm_tokens("what word is printed?")
    assert made["input_ids"][0].tolist() == [telling.START, *[4] * 196, *words, telling.END]
    torch.testing.assert_close(made["pixel_values"], images(SCENES[:1]))
    said = [{"type": "image"}, {"type": "text", "text": "what word is printed?"}]
    text = processor.apply_chat_template([{"role": "user", "content": said}])
    assert text == "<image>what word is printed?"


def test_rows_compute_what_single_prompts_compute(shipped: Any) -> None:
    """All texts of a scene in one row, against one forward for each."""
    told = [telling.lesson(s.objects, s.word, RandomState(0), 3) for s in SCENES[:2]]
    rows = reading.text_rows(told)
    with torch.no_grad():
        states = seeing.visual_states(shipped.model.vision_tower, images_of(SCENES[:2]))
        image = shipped.model.multi_modal_projector(states)
        found = iter(reading.predicted(shipped, image, rows).split(1))
        for row, some in enumerate(told):
            for one in some:
                prompt = [telling.START, *[4] * 196, *telling.vlm_tokens(one.prompt), telling.END]
                answer = telling.vlm_tokens(one.answer)
                ids = torch.tensor([prompt + answer])
                logits = shipped(input_ids=ids, pixel_values=images(SCENES[row : row + 1])).logits
                for expected in logits[0, len(prompt) - 1 :]:
                    torch.testing.assert_close(next(found)[0], expected, atol=1e-3, rtol=1e-3)
    assert next(found, None) is None


def images_of(scenes: list[Scene]) -> Tensor:
    return torch.stack([torch.from_numpy(scene.image) for scene in scenes])


def answered(model: Any, processor: Any) -> dict[str, float]:
    right: dict[str, list[bool]] = {}
    flat = [(index, told) for index, some in enumerate(TOLD) for told in some[1:]]
    text = ["<image>" + told.prompt for _, told in flat]
    made = processor(images=[SCENES[i].image for i, _ in flat], text=text, padding=True,
                     return_tensors="pt")  # fmt: skip
    ids = model.generate(**made, max_new_tokens=6, do_sample=False)
    said = processor.batch_decode(ids[:, made["input_ids"].shape[1] :], skip_special_tokens=True)
    for (_, told), answer in zip(flat, said, strict=True):
        right.setdefault(told.topic, []).append(answer.strip() == told.answer)
    flat_right = [good for some in right.values() for good in some]
    return {t: sum(r) / len(r) for t, r in right.items()} | {
        "answers": sum(flat_right) / len(flat_right)
    }


def test_the_shipped_model_answers_and_a_quarter_of_the_tokens_is_enough(
    shipped: Any, processor: Any
) -> None:
    whole = answered(shipped, processor)
    with turbovlm.applied(shipped, turbovlm.VisualTokens(keep=0.25)) as run:
        fewer = answered(shipped, processor)
        assert run.visual.images[0].kept.numel() == 49
    record = vlm.training_record()
    for topic, share in record["most common answer"].items():
        assert record["validation"][topic] > share, topic
    assert whole["answers"] >= 0.6
    assert fewer["answers"] >= 0.55


def test_training_writes_weights_that_load(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(captioner.WEIGHTS / "model.safetensors")
    parts: set[str] = set()
    plan = VlmTraining(encoder_minutes=1e-6, minutes=1e-6, scenes=16, check_scenes=2, out=tmp_path)
    scores = train_vlm(plan, lambda part, *_: parts.add(part))
    assert parts == {"encoder", "scenes", "reader"}
    assert set(scores) >= {"caption", "word", "colour"}
    model, _ = vlm.load_vlm(tmp_path)
    record = json.loads((tmp_path / "vlm" / "training.json").read_text())
    assert record["steps"] > 0
    assert record["encoder"]["steps"] > 0
    assert record["scenes"] == 16
    # the first blocks are the captioner's, the others have moved
    start = vlm.vision_weights(heads.shared_weights())
    state = model.model.vision_tower.state_dict()
    name = "mlp.fc1.weight"
    torch.testing.assert_close(state[f"layers.0.{name}"], start[f"layers.0.{name}"].half().float())
    assert not torch.allclose(state[f"layers.7.{name}"], start[f"layers.7.{name}"], atol=1e-5)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"python -m turbovlm_lab\.train_vlm"):
        vlm.load_vlm(tmp_path)


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--scenes", "1.5"]])
def test_bad_numbers_end_before_anything_runs(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
