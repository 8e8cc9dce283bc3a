"""The captioner of the benchmark on real data: its parts on tiny sizes, and itself where it can."""

from __future__ import annotations

import importlib
import os
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import turbovlm

timm = pytest.importorskip("timm")
pytest.importorskip("transformers")
pytest.importorskip("pycocoevalcap")

REAL = Path(__file__).parents[2] / "benchmarks" / "real"
DATA = Path(os.environ.get("TURBOVLM_DATA", Path(__file__).parents[3] / "shared" / "data"))
WORDS = ("a", "dog", "runs", "on", "grass")


@pytest.fixture
def flickr8k(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REAL)
    return importlib.import_module("flickr8k")


@pytest.fixture
def parts(flickr8k: ModuleType) -> ModuleType:
    return importlib.import_module("train_captioner")


@pytest.fixture
def llava(flickr8k: ModuleType) -> ModuleType:
    return importlib.import_module("train_llava")


@pytest.fixture
def bench(parts: ModuleType) -> ModuleType:
    return importlib.import_module("captioning")


def tiny(flickr8k: ModuleType, parts: ModuleType) -> tuple[Any, Any, Any]:
    """timm's encoder, the same of transformers, and a decoder."""
    torch.manual_seed(0)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=32, depth=2, num_heads=2
    ).eval()
    for parameter in theirs.parameters():  # biases and cls are zero, and would hide a mistake
        torch.nn.init.normal_(parameter, std=0.2)
    ours = flickr8k.vit(theirs.state_dict(), heads=2)
    return theirs, ours, parts.decoder(len(flickr8k.SPECIAL) + len(WORDS), width=32).eval()


def test_encoder_is_timms(flickr8k: ModuleType, parts: ModuleType) -> None:
    theirs, ours, _ = tiny(flickr8k, parts)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.forward_features(x)
        torch.testing.assert_close(ours(x).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_vocabulary(flickr8k: ModuleType) -> None:
    captions = [["A dog's ball.", "a dog"], ["A dog, a dog", "a DOG; cat"]]
    assert flickr8k.vocabulary(captions) == [*flickr8k.SPECIAL, "a", "dog"]
    text = flickr8k.tokenizer([*flickr8k.SPECIAL, *WORDS])
    ids = flickr8k.numbers(text, flickr8k.START, ["Dog runs far!"])
    assert ids == [[2, 6, 7, flickr8k.UNKNOWN, 3]]
    assert text.decode([2, 5, 6, 7, 3, 0], skip_special_tokens=True) == "a dog runs"


def test_packed_captions_do_not_see_each_other(flickr8k: ModuleType, parts: ModuleType) -> None:
    _, _, say = tiny(flickr8k, parts)
    rows = [[[2, 5, 6, 3], [2, 6, 1, 8, 3]], [[2, 9, 3]]]
    packed = flickr8k.Packed.of(rows)
    assert packed.next.tolist() == [[5, 6, 3, 6, 0, 8, 3], [9, 3, 0, 0, 0, 0, 0]]  # UNK not learned
    seen = torch.randn(2, 5, 32)
    with torch.no_grad():
        joint = say.bert(
            packed.tokens,
            attention_mask=packed.mask,
            position_ids=packed.position,
            encoder_hidden_states=seen,
            use_cache=False,
        ).last_hidden_state
        alone = say.bert(torch.tensor([[2, 6, 1, 8]]), encoder_hidden_states=seen[:1])
    torch.testing.assert_close(joint[:1, 3:7], alone.last_hidden_state)


def test_a_saved_decoder_comes_back(
    flickr8k: ModuleType, parts: ModuleType, tmp_path: Path
) -> None:
    _, see, say = tiny(flickr8k, parts)
    text = flickr8k.tokenizer([*flickr8k.SPECIAL, *WORDS])
    parts.save(say, text, tmp_path, {"cider": 0.5})
    back, same = parts.load_decoder(tmp_path)
    assert same.get_vocab() == text.get_vocab()
    for name, value in say.named_parameters():
        assert torch.equal(back.get_parameter(name), value.half().float()), name
    assert back.cls.predictions.decoder.weight is back.bert.embeddings.word_embeddings.weight
    model = parts.join(see, back)
    ids = model.generate(pixel_values=torch.randn(2, 3, 64, 64), do_sample=False)
    assert (ids[:, 0] == flickr8k.START).all()


@pytest.fixture
def quick(flickr8k: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flickr8k, "SELECT", 2)
    monkeypatch.setattr(flickr8k, "RATE", 1e-2)


@pytest.mark.usefixtures("quick")
def test_training_learns_and_keeps_the_best(flickr8k: ModuleType, parts: ModuleType) -> None:
    _, see, say = tiny(flickr8k, parts)
    text = flickr8k.tokenizer([*flickr8k.SPECIAL, *WORDS])
    model = parts.join(see, say)
    seen = torch.randn(2, 18, 5, 32).half()
    truth = [["a dog runs", "a dog on grass"]] * 18
    kept: list[dict[str, float]] = []
    pupil = flickr8k.Pupil(
        say, text, flickr8k.START, partial(parts.loss, say), partial(parts.captions, model, text),
        warmup=1,
    )  # fmt: skip
    flickr8k.train(pupil, seen, truth, flickr8k.Until(20, 1.0), kept.append)
    # after a, dog is certain; both captions begin that way
    assert parts.captions(model, text, seen[0])[0].startswith("a dog")
    assert [k["cider"] for k in kept] == sorted({k["cider"] for k in kept})


def small_llava(flickr8k: ModuleType, parts: ModuleType, llava: ModuleType) -> tuple[Any, Any]:
    """Of the tiny tower, 16 visual tokens."""
    _, see, _ = tiny(flickr8k, parts)
    tokens = [*flickr8k.SPECIAL, *WORDS, llava.IMAGE]
    model = llava.llava(see, len(tokens), width=32)
    model.config.image_seq_length = 16
    return model, llava.processing(tokens).tokenizer


@pytest.mark.usefixtures("quick")
def test_the_llava_learns_what_is_seen_and_is_transformers_own(
    flickr8k: ModuleType, parts: ModuleType, llava: ModuleType, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(llava, "TOKENS", 16)
    model, text = small_llava(flickr8k, parts, llava)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        two = llava.visual_states(model.model.vision_tower, pixels)
    seen = two.repeat(20, 1, 1)[None].half()
    truth = [["a dog"], ["on grass"]] * 20
    say = torch.nn.ModuleList([model.model.language_model, model.model.multi_modal_projector])
    pupil = flickr8k.Pupil(
        say, text, flickr8k.END, partial(llava.loss, model), partial(llava.captions, model, text),
        warmup=1,
    )  # fmt: skip
    flickr8k.train(pupil, seen, truth, flickr8k.Until(15, 1.0), lambda _: None)
    assert llava.captions(model, text, two) == ["a dog", "on grass"]
    assert len(set(llava.captions(model, text, two[:, :0]))) == 1  # without a picture
    # the same from pixels, as everybody would ask
    ids = text("<image>" * 16, return_tensors="pt")["input_ids"].expand(2, -1)
    assert ids[0].tolist() == [2, *[10] * 16, 3]
    out = model.generate(input_ids=ids, pixel_values=pixels, do_sample=False)
    said = text.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    assert [one.strip() for one in said] == ["a dog", "on grass"]
    llava.save(model, [*flickr8k.SPECIAL, *WORDS, llava.IMAGE], tmp_path, {"cider": 1.0})
    kept = llava.load_file(tmp_path / llava.FILE)
    assert not [name for name in kept if "vision" in name]
    assert kept.keys() == llava.learned(model).keys()


def test_visual_tokens_are_read_at_their_places(
    flickr8k: ModuleType, parts: ModuleType, llava: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next words along captions and greedy ones are those of a patched model."""
    monkeypatch.setattr(llava, "TOKENS", 16)
    model, _ = small_llava(flickr8k, parts, llava)
    torch.nn.init.normal_(model.lm_head.weight)  # tied: else every word is as likely
    pixels = torch.randn(1, 3, 64, 64)
    ids = torch.tensor([[2, *[10] * 16, 3, 5, 6]])
    packed = flickr8k.Packed.of([[[3, 5, 6, 7]]])
    with torch.no_grad():
        image = llava.projected(model, llava.visual_states(model.model.vision_tower, pixels))
        whole = llava.logits(model, image, packed)
        expected = model(input_ids=ids, pixel_values=pixels).logits[0, -3:]
        torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-4)
        config = turbovlm.VisualTokens(keep=4, merge=False)
        with turbovlm.applied(model, config) as run:
            expected = model(input_ids=ids, pixel_values=pixels).logits[0, -3:]
            found = run.records()[0].images[0].kept
        at = found.view(1, -1)
        short = image.gather(1, at.unsqueeze(2).expand(-1, -1, 32))
        less = llava.logits(model, short, packed, at)
    torch.testing.assert_close(less, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(less, whole, atol=1e-2)


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "flickr8k").is_dir(), reason="TURBOVLM_DATA has no flickr8k")
def test_the_shipped_captioner_describes_photographs(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["captioning.py", "--data", str(DATA), "--batch", "8"]
    monkeypatch.setattr("sys.argv", arguments)
    read = bench.read
    monkeypatch.setattr(bench, "read", lambda *given: tuple(x[:8] for x in read(*given)))
    it = bench.Captioner(bench.parse())
    assert it.base.scores.cider > 0.3  # noise describes photographs at 0.0
    assert it.base.same.eq(1).all()
    assert it.base.kl.abs().max() == 0
    result = {}
    for r in (4, 13):
        seen = it.see(turbovlm.Merge(r=r))
        assert seen.shape[1] == 197 - 12 * r
        result[r] = it.result(seen, it.say(seen))
    assert 0 < result[4].kl.mean() < result[13].kl.mean()


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "flickr8k").is_dir(), reason="TURBOVLM_DATA has no flickr8k")
def test_the_shipped_llava_loses_little_by_little(
    llava: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REAL.parent / "vlm")
    bench = importlib.import_module("flickr")
    it = bench.Flickr(DATA, bench.HEAD, "dev", 8)
    seen = it.see()
    base = it.next(bench.whole(seen))
    half, few = (
        it.scores(importlib.import_module("criteria").library(seen, keep), base)
        for keep in (98, 12)
    )
    whole = it.scores(bench.whole(seen), base)
    assert np.abs(whole["kl"]).max() == 0
    assert 0 < half["kl"].mean() < few["kl"].mean()
    none = bench.Reduced(seen.features[:, :0], torch.zeros(8, 0, dtype=torch.int64))
    assert it.scores(none, base)["kl"].mean() > 2 * few["kl"].mean()
