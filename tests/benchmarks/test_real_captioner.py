"""The captioner of the benchmark on real data: its parts on tiny sizes, and itself where it can."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

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
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REAL)
    return importlib.import_module("train_captioner")


@pytest.fixture
def bench(parts: ModuleType) -> ModuleType:
    return importlib.import_module("captioning")


def tiny(parts: ModuleType) -> tuple[Any, Any, Any]:
    """timm's encoder, the same of transformers, and a decoder."""
    torch.manual_seed(0)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=32, depth=2, num_heads=2
    ).eval()
    for parameter in theirs.parameters():  # biases and cls are zero, and would hide a mistake
        torch.nn.init.normal_(parameter, std=0.2)
    ours = parts.vit(theirs.state_dict(), heads=2)
    return theirs, ours, parts.decoder(len(parts.SPECIAL) + len(WORDS), width=32).eval()


def test_encoder_is_timms(parts: ModuleType) -> None:
    theirs, ours, _ = tiny(parts)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.forward_features(x)
        torch.testing.assert_close(ours(x).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_vocabulary(parts: ModuleType) -> None:
    captions = [["A dog's ball.", "a dog"], ["A dog, a dog", "a DOG; cat"]]
    assert parts.vocabulary(captions) == [*parts.SPECIAL, "a", "dog"]
    text = parts.tokenizer([*parts.SPECIAL, *WORDS])
    ids = [parts.START, *text.convert_tokens_to_ids(["dog", "runs", "far"]), parts.END, parts.PAD]
    assert ids == [2, 6, 7, parts.UNKNOWN, 3, 0]
    assert text.decode([2, 5, 6, 7, 3, 0], skip_special_tokens=True) == "a dog runs"


def test_packed_captions_do_not_see_each_other(parts: ModuleType) -> None:
    _, _, say = tiny(parts)
    rows = [[[2, 5, 6, 3], [2, 6, 1, 8, 3]], [[2, 9, 3]]]
    packed = parts.Packed.of(rows)
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


def test_a_saved_decoder_comes_back(parts: ModuleType, tmp_path: Path) -> None:
    _, see, say = tiny(parts)
    text = parts.tokenizer([*parts.SPECIAL, *WORDS])
    parts.save(say, text, tmp_path, {"cider": 0.5})
    back, same = parts.load_decoder(tmp_path)
    assert same.get_vocab() == text.get_vocab()
    for name, value in say.named_parameters():
        assert torch.equal(back.get_parameter(name), value.half().float()), name
    assert back.cls.predictions.decoder.weight is back.bert.embeddings.word_embeddings.weight
    model = parts.join(see, back)
    ids = model.generate(pixel_values=torch.randn(2, 3, 64, 64), do_sample=False)
    assert (ids[:, 0] == parts.START).all()


def test_training_learns_and_keeps_the_best(
    parts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, see, say = tiny(parts)
    text = parts.tokenizer([*parts.SPECIAL, *WORDS])
    monkeypatch.setattr(parts, "SELECT", 2)
    monkeypatch.setattr(parts, "WARMUP", 1)
    monkeypatch.setattr(parts, "RATE", 1e-2)
    model = parts.join(see, say)
    seen = torch.randn(2, 18, 5, 32).half()
    truth = [["a dog runs", "a dog on grass"]] * 18
    kept: list[dict[str, float]] = []
    parts.train(model, text, seen, truth, parts.Until(20, 1.0), kept.append)
    # after a, dog is certain; both captions begin that way
    assert parts.captions(model, text, seen[0])[0].startswith("a dog")
    assert [k["cider"] for k in kept] == sorted({k["cider"] for k in kept})


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
