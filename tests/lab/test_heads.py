"""The heads that ship with the package: right on unseen scenes, and hardly hurt by merging."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import turbovlm
from turbovlm.errors import MissingExtra, ModelError

pytest.importorskip("transformers")

from turbovlm_lab import captioner, heads, painter
from turbovlm_lab.grammar import describe
from turbovlm_lab.pairs import group
from turbovlm_lab.questions import ask
from turbovlm_lab.scenes import scene, seed_of_split

UNSEEN = 64
SCENES = [scene(seed_of_split("test", index)) for index in range(UNSEEN)]

Judge = Callable[[Any, Any, Tensor], Tensor]


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    processor: Any = heads.build_head_processor()
    return processor(images=[s.image for s in SCENES], return_tensors="pt")["pixel_values"]


def answers(model: Any, processor: Any, pixels: Tensor) -> Tensor:
    """Whether a question about each scene is answered right."""
    asked = [ask(s.objects, s.seed)[index % 6] for index, s in enumerate(SCENES)]
    text = processor.tokenizer([q.text for q in asked], padding=True, return_tensors="pt")
    tokens = model.generate(
        text["input_ids"], pixels, attention_mask=text["attention_mask"], max_new_tokens=5
    )
    said = processor.batch_decode(tokens, skip_special_tokens=True)
    return torch.tensor([a == q.answer for a, q in zip(said, asked, strict=True)])


def matches(model: Any, processor: Any, pixels: Tensor) -> Tensor:
    """Whether each scene's own caption is nearest."""
    captions = [describe(s.objects) for s in SCENES]
    text = processor.tokenizer(captions, padding=True, return_tensors="pt")
    ids, mask = text["input_ids"], text["attention_mask"]
    alike = model(ids, pixels, attention_mask=mask, use_itm_head=False).itm_score
    return alike.argmax(1) == torch.arange(UNSEEN)


def judgements(model: Any, processor: Any, pixels: Tensor) -> Tensor:
    """Whether four statements about each of some pairs are judged right."""
    objects = [s.objects for s in SCENES]
    groups = [group(objects, seed) for seed in range(8)]
    pairs = [pair for one in groups for pair in one.pairs]
    said = [one.statement for one in groups for _ in one.pairs]
    text = processor.tokenizer(said, padding=True, return_tensors="pt")
    both = torch.stack([pixels[[pair.left, pair.right]] for pair in pairs])
    logits = model(both, text["input_ids"], text["attention_mask"]).logits
    return logits.argmax(1) == torch.tensor([int(pair.label) for pair in pairs])


TASKS: dict[str, tuple[Judge, float]] = {
    "vqa": (answers, 0.9),
    "retrieval": (matches, 0.7),
    "nlvr": (judgements, 0.8),
}


@pytest.mark.parametrize("head", heads.HEADS)
def test_a_head_is_right_and_merging_hardly_hurts(head: str, pixels: Tensor) -> None:
    judge, least = TASKS[head]
    model: Any
    model, processor = heads.load_head(head)
    assert not model.training
    right, states = {}, {}
    for r in (0, 8):
        merged = turbovlm.applied(model, turbovlm.Merge(r=r)) if r else nullcontext()
        with torch.no_grad(), merged:
            right[r] = judge(model, processor, pixels).float().mean().item()
            states[r] = model.vision_model(pixels[:2]).last_hidden_state
    assert states[0].shape[1] == 197
    assert states[8].shape[1] == 197 - 8 * 8
    assert right[0] >= least
    assert right[8] >= right[0] - 0.1


def test_a_matching_head_tells_right_captions_from_nearly_right_ones(pixels: Tensor) -> None:
    model: Any
    model, processor = heads.load_head("retrieval")
    captions = [describe(s.objects) for s in SCENES[:32]]
    wrong = [swapped(c) for c in captions]
    assert all(a != b for a, b in zip(captions, wrong, strict=True))
    found = []
    for said in (captions, wrong):
        text: Any = processor.tokenizer(said, padding=True, return_tensors="pt")
        with torch.no_grad():
            out = model(text["input_ids"], pixels[:32], attention_mask=text["attention_mask"])
        found.append(out.itm_score.argmax(1))
    assert (found[0] == 1).float().mean() >= 0.8
    assert (found[1] == 0).float().mean() >= 0.8


def swapped(caption: str) -> str:
    """The caption with the size of its first object changed."""
    first, size, rest = caption.split(" ", 2)
    return " ".join((first, {"small": "large", "large": "small"}[size], rest))


def test_the_vision_encoder_is_stored_once() -> None:
    shared = heads.shared_weights()
    captions, _ = captioner.load_captioner()
    for name, weight in captions.state_dict().items():
        if name in shared:
            assert torch.equal(weight, shared[name])
    for head in heads.HEADS:
        state = heads.load_head(head)[0].state_dict()
        own = {name for name, weight in shared.items() if not torch.equal(weight, state[name])}
        last = {name for name in shared if ".encoder.layers.7." in name}
        assert own == (last if head == "retrieval" else set())


def test_all_weights_are_small_safetensors_with_a_record() -> None:
    files = [path for path in captioner.WEIGHTS.rglob("*") if path.is_file()]
    painting = [path for path in files if path.is_relative_to(painter.WEIGHTS)]
    # what reads images has one budget, what draws them its own
    assert sum(path.stat().st_size for path in painting) <= 20_000_000
    assert sum(path.stat().st_size for path in files if path not in painting) <= 40_000_000
    assert not {path.suffix for path in files} & {".bin", ".pt", ".pkl"}
    for head in heads.HEADS:
        record = json.loads((captioner.WEIGHTS / head / "training.json").read_text())
        assert record["steps"] > 0
        assert record["scenes"] > 0
        assert all(0 < score <= 1 for score in record["validation"].values())


def test_words_of_captions_keep_their_tokens() -> None:
    _, processor = captioner.load_captioner()
    own: Any = heads.build_head_processor()
    caption = describe(SCENES[0].objects)
    assert own.tokenizer(caption)["input_ids"] == processor.tokenizer(caption)["input_ids"]
    assert own.tokenizer.unk_token_id not in own.tokenizer("is there an orange ring?")["input_ids"]
    assert len(own.tokenizer) == heads.build_head("vqa").config.text_config.vocab_size


def test_unknown_heads_and_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="vqa, retrieval, nlvr"):
        heads.load_head("captions")
    with pytest.raises(ModelError, match=r"python -m turbovlm_lab\.train$"):
        heads.load_head("vqa", tmp_path)
    (tmp_path / "model.safetensors").symlink_to(captioner.WEIGHTS / "model.safetensors")
    with pytest.raises(ModelError, match=r"turbovlm_lab\.train_heads vqa$"):
        heads.load_head("vqa", tmp_path)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, extra: str) -> None:
        raise MissingExtra(module, extra)

    monkeypatch.setattr(heads, "require", missing)
    with pytest.raises(MissingExtra, match="hf"):
        heads.load_head("vqa")
