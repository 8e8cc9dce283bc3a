"""``turbovlm check`` and ``turbovlm models`` as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.language.zoo import LLAVA
from tests.workbench.cli.test_commands import turbovlm_runs
from turbovlm_workbench.paper.minigptv2 import MiniGPTv2Config

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def test_a_supported_model(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = turbovlm_runs(capsys, "check", "torchvision:vit_b_16", "--r", 13, "--size", 64)
    assert code == 0, err
    assert "12 x torchvision.models.vision_transformer.EncoderBlock" in out
    assert "self-check passed" in out
    assert "tokens 17 -> 9 5 3 2 2" in out
    assert "supported: Merge(r=13)" in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = turbovlm_runs(capsys, "check", "timm:vit_tiny_patch16_224", "--r", 8, "--json")
    found = json.loads(out)
    assert (code, found["fits"], found["towers"][0]["tokens"][:2]) == (0, True, [189, 181])
    assert found["towers"][0]["resolved"]["config"] == {"kind": "merge", "speedup": 1.4}
    assert found["language"] is None


def test_a_speedup_is_resolved(capsys: pytest.CaptureFixture[str]) -> None:
    model = "timm:vit_tiny_patch16_224"
    code, out, _ = turbovlm_runs(capsys, "check", model, "--speedup", 1.8, "--json")
    assert code == 0
    found = json.loads(out)
    tower = found["towers"][0]
    before, after = found["gflops"]
    assert before / after == pytest.approx(1.8, abs=0.06)  # matching and the stem count too
    assert tower["tokens"][:3] == [197] * 3  # the first quarter merges nothing
    assert tower["resolved"]["tokens"] == tower["tokens"]
    assert len(set(tower["resolved"]["tokens_gpu"])) == 4  # three merges
    default = turbovlm_runs(capsys, "check", model)[1]
    assert "supported: Merge(speedup=1.4)" in default
    assert "Merge(speedup=1.4) on a GPU, where fewer blocks merge: 197 197" in default
    other = turbovlm_runs(capsys, "check", model, "--r", 8)[1]
    assert "recommended, Merge(speedup=1.4): 197 197" in other


def test_a_vision_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config: Any = LLAVA.build().config
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    code, out, _ = turbovlm_runs(capsys, "check", tmp_path, "--r", 8, "--keep", 9, "--json")
    assert code == 0
    rows = json.loads(out)["language"]["rows"]
    assert [row["visual"] for row in rows] == [36, 36, 9, 9]
    assert rows[3]["configs"][1] == {"kind": "visual_tokens", "keep": 9}
    code, out, _ = turbovlm_runs(capsys, "check", tmp_path, "--r", 8, "--keep", 0.5)
    assert code == 0
    assert "VisualTokens(keep=0.5)" in out
    code, _, err = turbovlm_runs(capsys, "check", tmp_path, "--r", 8, "--keep", 37)
    assert code == 2
    assert "asks for more tokens than the 36" in err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:swin_tiny_patch4_window7_224", "windows of a fixed grid"),
        ("timm:cait_xxs24_224", "turbovlm.register(turbovlm.Row("),
        ("timm:resnet18", "no run of equal blocks"),
    ],
)
def test_an_unsupported_model_leaves_with_one(
    name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = turbovlm_runs(capsys, "check", name)
    assert code == 1
    assert words in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["timm:vit_bse_patch16_224"], "did you mean vit_base_patch16_224"),
        (["timm:vit_tiny_patch16_224", "--r", "4", "8"], "--r takes one value here"),
        (["timm:vit_tiny_patch16_224", "--r", "-3"], "r must not be negative"),
        (["timm:vit_tiny_patch16_224", "--speedup", "0.5"], "speedup must be at least 1"),
        (["timm:vit_tiny_patch16_224", "--speedup", "1.2", "1.4"], "--speedup takes one value"),
        (["timm:vit_tiny_patch16_224", "--speedup", "1.4", "--r", "4"], "give one of the two"),
        (["timm:vit_tiny_patch16_224", "--speedup", "90"], "speedup=90 is out of reach"),
        (["timm:vit_tiny_patch16_224", "--keep", "some"], "--keep takes a share such as 0.25"),
        (["timm:vit_tiny_patch16_224", "--keep", "1.5"], "keep is a share in (0, 1]"),
        (["timm:vit_tiny_patch16_224", "--keep", "0"], "at least one token an image"),
        (["timm:vit_tiny_patch16_224", "--size", "0"], "at least 1 pixel"),
    ],
)
def test_mistakes(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = turbovlm_runs(capsys, "check", *argv)
    assert (code, out) == (2, "")
    assert message in err


def test_a_setting_that_minigptv2_cannot_join(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vision = {**SMALL, "image_size": 64, "patch_size": 8}
    text = {**SMALL, "vocab_size": 64, "num_key_value_heads": 4}
    MiniGPTv2Config(vision_config=vision, text_config=text).save_pretrained(tmp_path)
    assert turbovlm_runs(capsys, "check", tmp_path, "--r", 4)[0] == 0
    code, _, err = turbovlm_runs(capsys, "check", tmp_path, "--r", 5)
    assert code == 2
    assert "leaves 49 patch tokens" in err
    assert "r=4 or r=8" in err


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = turbovlm_runs(capsys, "models")
    assert code == 0
    assert "BlipVisionModel" in out
    assert "SwinTransformer" in out
    code, out, _ = turbovlm_runs(capsys, "models", "--json")
    assert {record["library"] for record in json.loads(out)["supported"]} == {
        "transformers", "timm", "torchvision", "open_clip"
    }  # fmt: skip
    assert turbovlm_runs(capsys, "models", "--json", "--markdown")[0] == 2
