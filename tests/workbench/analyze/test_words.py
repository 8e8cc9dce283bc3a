"""Merged words: the groups are those that the encoder's own output shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

import turbovlm
from tests.workbench import build
from tests.workbench.cli.test_commands import turbovlm_runs
from tests.workbench.load.test_matching import BERT, blip, dual, save
from turbovlm import Merge
from turbovlm_workbench.analyze.words import word_map
from turbovlm_workbench.load.words import load_text_encoder

TEXT = "word3 word4 word5 word4 word9 word3 word7"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = hf.BertConfig(**{**BERT, "num_hidden_layers": 3})
    return save(tmp_path_factory.mktemp("bert"), hf.BertModel(config))


@pytest.mark.parametrize("kind", ["bert", "blip"])
def test_words_of_one_group_have_one_output(bert: Path, tmp_path: Path, kind: str) -> None:
    encoder = load_text_encoder(str(bert if kind == "bert" else blip(tmp_path / "blip", more=2)))
    merge = Merge(r=2)
    found = word_map(encoder, TEXT, {"ours": merge})
    assert found.words == ("[CLS]", *TEXT.split(), "[SEP]")
    steps = found.sides["ours"]
    assert [len(step.groups) for step in steps] == [9 - 2 * n for n in range(1, len(steps) + 1)]
    before = [{n} for n in range(9)]
    for step in steps:
        assert step.groups[0] == (0,)  # cls is never merged
        assert sorted(n for group in step.groups for n in group) == list(range(9))
        assert all(any(old <= set(new) for new in step.groups) for old in before)  # groups grow
        before = [set(group) for group in step.groups]
    inputs = encoder.ids(TEXT)
    with torch.no_grad(), turbovlm.applied(encoder.model, merge):
        hidden = encoder.model(**inputs).last_hidden_state[0]
    for n in range(9):
        for m in range(n):
            together = any({n, m} <= group for group in before)
            assert torch.equal(hidden[n], hidden[m]) == together


def test_show_of_texts_and_its_report(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = turbovlm_runs(
        capsys, "show", bert, "--text", TEXT, "--text", "word1 word2 word6", "--method", "turbo",
        "random", "--json", tmp_path / "words.json",
    )  # fmt: skip
    assert code == 0, err
    data = json.loads((tmp_path / "words.json").read_text())
    assert data["command"].startswith("turbovlm show ")
    one, two = data["texts"]
    assert (one["text"], len(one["words"]), len(two["words"])) == (TEXT, 9, 5)
    assert list(one["sides"]) == ["turbo r=1", "random r=1"]
    first = one["sides"]["turbo r=1"][0]
    assert (first["block"], len(first["groups"])) == (1, 8)
    (pair,) = (group for group in first["groups"] if len(group) > 1)
    joined = " + ".join(one["words"][n] for n in pair)
    lines = out.splitlines()
    assert lines[0] == f"{TEXT} (9 tokens)"
    assert lines[1].strip() == "turbo r=1"
    assert lines[2].strip().startswith("block 1, 8 tokens: [CLS] ")
    assert f"[{joined}]" in lines[2]
    code, _, err = turbovlm_runs(
        capsys, "report", tmp_path / "words.json", "--out", tmp_path / "page.html"
    )
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    assert page.count('<span class="changed">') >= 6
    assert f'<span class="changed">{joined}</span>' in page
    assert "<dt>turbo r=1, block 1, 8 tokens</dt>" in page
    assert f"turbo r=1 leaves 6 of 9 tokens of &#34;{TEXT}&#34;" in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "show takes image files, or --text for a text encoder: give one of them"),
        (["dog.jpg", "--text", "a dog"], "give one of them"),
        (["--text", "a", "--out", "x.png", "--keep", "0.5"], "--keep and --out is for pictures"),
        (["--text", "a", "--r", "-1"], "r must not be negative"),
        (["--text", "a", "--json", "/no/such/x.json"], "cannot write --json"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    code, out, err = turbovlm_runs(capsys, "show", "gone", *more)
    assert (code, out) == (2, "")
    assert message in err


def test_what_has_no_words_to_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = turbovlm_runs(capsys, "show", dual(tmp_path / "clip", "clip"), "--text", "word1")
    assert code == 2
    assert "it is causal and is read at the end-of-text position" in err
    folder = build.vit_backbone(tmp_path / "vit")
    words = {word: index for index, word in enumerate(build.WORDS)}
    hf.BertTokenizer(vocab=words).save_pretrained(folder)
    code, _, err = turbovlm_runs(capsys, "show", folder, "--text", "word1")
    assert code == 2
    assert "holds no text encoder that is known" in err
