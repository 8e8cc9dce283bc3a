"""``turbovlm check`` and ``turbovlm models`` as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
    code, out, _ = turbovlm_runs(capsys, "check", "timm:vit_tiny_patch16_224", "--json")
    found = json.loads(out)
    assert (code, found["fits"], found["towers"][0]["tokens"][:2]) == (0, True, [189, 181])


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
