"""UPop's pruned BLIP: its layout on disk, the narrowed layers, and merging on top."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import turbovlm
from tests.workbench.build import WORDS
from tests.workbench.paper.upop_files import (
    SIZES,
    layers,
    masked,
    outputs,
    pixels,
    pruned_file,
    whole,
)
from turbovlm.errors import ConfigError, InputError, ModelError
from turbovlm.measure import flops
from turbovlm_workbench.load.by_task import load_answering
from turbovlm_workbench.load.models import load_model
from turbovlm_workbench.paper.upop import UPopCaptioner, UPopCaptionerConfig
from turbovlm_workbench.paper.upop_checkpoint import TASKS, convert_upop, load_upop, main

FIRST = "vision_model.encoder.layers.0.self_attn"
QKV = "visual_encoder.blocks.1.attn.qkv.weight"
TIED = "text_decoder.cls.predictions.decoder.weight"


def save(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize("task", TASKS)
def test_the_pruned_model_is_the_masked_one(task: str, tmp_path: Path) -> None:
    """Logits are scaled by the whole head in the vision encoder, by what is left in the text."""
    dense = whole(task)
    path = save(tmp_path / "pruned.pth", pruned_file(task, dense))
    plain, expected = outputs(task, dense), outputs(task, masked(task, dense))
    assert not torch.allclose(expected, plain, atol=0.1), "pruning changed nothing"
    model = load_upop(path, task, SIZES)
    assert torch.allclose(outputs(task, model), expected, atol=2e-5)
    narrowed = [layer for layer in layers(task) if len(layer.kept) < layer.channels]
    assert len(model.config.widths or ()) == len(narrowed)
    assert FIRST not in (model.config.widths or ())  # which is whole


@torch.no_grad()
def test_merging_works_on_it_and_comes_off(tmp_path: Path) -> None:
    dense = whole("captioning")
    path = save(tmp_path / "pruned.pth", pruned_file("captioning", dense))
    model, wide = load_upop(path, "captioning", SIZES), masked("captioning", dense)
    before, whole_cost = outputs("captioning", model), flops(model.vision_model, pixels()).macs
    results = {}
    for name, one in {"narrow": model, "masked": wide}.items():
        with turbovlm.applied(one, turbovlm.Merge(r=8)) as run:
            results[name] = outputs("captioning", one)
            assert run.trace.tokens == (57, 49, 41)
            if one is model:
                assert flops(model.vision_model, pixels()).macs < whole_cost
    assert not torch.allclose(results["narrow"], before, atol=1e-3), "merging changed nothing"
    assert torch.allclose(results["narrow"], results["masked"], atol=2e-5)
    assert torch.equal(outputs("captioning", model), before)


@torch.no_grad()
def test_attention_can_be_fused(tmp_path: Path) -> None:
    path = save(tmp_path / "pruned.pth", pruned_file("captioning", whole("captioning")))
    model: Any = load_upop(path, "captioning", SIZES)
    before = outputs("captioning", model)
    turbovlm.fuse_attention(model)
    assert model.vision_model.encoder.layers[1].self_attn(torch.zeros(1, 5, 32))[1] is None
    assert torch.allclose(outputs("captioning", model), before, atol=1e-5)


def test_a_whole_blip_has_the_same_layout(tmp_path: Path) -> None:
    dense = whole("captioning")
    state = pruned_file("captioning", dense, prune=False)
    model = load_upop(save(tmp_path / "whole.pth", state), "captioning", SIZES)
    assert model.config.widths == {}
    assert torch.equal(outputs("captioning", model), outputs("captioning", dense))


def same_weights(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def with_tokenizer(folder: Path) -> str:
    words = [*WORDS, *(f"more{i}" for i in range(6)), "[DEC]", "[ENC]"]
    hf.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)


def test_the_commands_load_the_folder(tmp_path: Path) -> None:
    states = {task: pruned_file(task, whole(task)) for task in TASKS}
    for task, state in states.items():
        convert_upop(save(tmp_path / f"{task}.pth", state), tmp_path / task, task, SIZES)
    captioner: Any = load_model(with_tokenizer(tmp_path / "captioning"), beams=1)
    assert type(captioner.model) is UPopCaptioner
    expected = load_upop(tmp_path / "captioning.pth", "captioning", SIZES)
    assert same_weights(captioner.model, expected)
    got, wanted = (outputs("captioning", one) for one in (captioner.model, expected))
    assert torch.allclose(got, wanted, atol=1e-6)
    answers = load_answering(with_tokenizer(tmp_path / "vqa"))
    expected = load_upop(tmp_path / "vqa.pth", "vqa", SIZES)
    assert same_weights(answers.model, expected)
    assert len(answers.answer(pixels(), ["word1 word2", "word3"])) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update({"visual_encoder.blocks.1.attn.alpha": torch.ones(16)}),
            "is of UPop's search.*give the checkpoint that its compression wrote",
        ),
        (
            lambda s: s.update({QKV: s[QKV][:-1]}),
            rf"{QKV} has \d+ rows, which is no multiple of 6 up to 96: give the sizes",
        ),
        (
            lambda s: s.update({QKV: s[QKV][:-6]}),
            r"have another shape \(visual_encoder\.blocks\.1\.attn\.qkv\.bias",
        ),
        (lambda s: s.pop(QKV), rf"1 keys are missing \({QKV}, \.\.\.\).*compressed checkpoint"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 are unknown \(extra, \.\.\.\)"),
        (
            lambda s: s[TIED].add_(1),
            r"word_embeddings\.weight and .*decoder\.weight, which BLIP shares, with different",
        ),
    ],
)
def test_files_that_do_not_fit(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = pruned_file("captioning", whole("captioning"))
    change(state)
    with pytest.raises(ModelError, match=message):
        convert_upop(save(tmp_path / "bad.pth", state), tmp_path / "out", "captioning", SIZES)
    assert not (tmp_path / "out").exists()


def test_mistakes_are_named_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="no task 'nlvr': give captioning or vqa"):
        load_upop(tmp_path / "x.pth", "nlvr")
    for widths, message in (
        ({"lm_head": 3}, "widths name 'lm_head', which is no attention and no MLP"),
        ({FIRST: 0}, f"widths give {FIRST} 0 channels: give 1 to 16"),
        ({FIRST: 17}, f"widths give {FIRST} 17 channels: give 1 to 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            UPopCaptioner(UPopCaptionerConfig(**SIZES, widths=widths))
    (tmp_path / "used" / "inner").mkdir(parents=True)
    for words, message in (
        (["gone.pth", "out"], "no weights file"),
        (["gone.pth", "out", "--image-size", "100"], "--image-size 100 is not a multiple of 16"),
        (["gone.pth", "used"], "is not an empty folder"),
    ):
        with pytest.raises(SystemExit) as left:
            main([str(tmp_path / words[0]), str(tmp_path / words[1]), *words[2:]])
        assert left.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    assert "upop_checkpoint model_base_caption_2x_compressed.pth" in capsys.readouterr().out
