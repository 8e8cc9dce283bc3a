"""`check_model` on every kind of model: supported, refused, unknown with a draft or without."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from torch import Tensor, nn

import turbovlm
from tests.hosts.zoo import LANGUAGE, SIZES, TEXT, VISION, pixels, words
from turbovlm import Merge, errors, hosts
from turbovlm.plug.encoder.block import TurboBlock
from turbovlm.plug.encoder.draft import draft
from turbovlm_workbench.compare.check import Check, check_model
from turbovlm_workbench.load.skeleton import Skeleton, outline, skeleton
from turbovlm_workbench.report import check as report


def on_meta(model: nn.Module, **inputs: Tensor) -> Skeleton:
    return Skeleton("mine", model.to("meta").eval(), inputs, "a model")


def checked(model: nn.Module, r: int = 5, **inputs: Tensor) -> Check:
    return check_model(on_meta(model, **inputs), Merge(r=r))


def test_a_supported_model_says_what_would_be_merged() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, depth=4, global_pool="avg"
    )
    found = checked(model, x=pixels(1))
    (tower,) = found.towers
    assert found.fits
    assert (tower.start, tower.tokens) == (65, (60, 55, 50, 45))
    assert (tower.prefix_tokens, tower.guide, tower.reads, tower.blocks) == (1, "cls", "all", 4)
    assert found.gflops is not None
    assert found.gflops[0] > found.gflops[1]
    assert not any(isinstance(m, TurboBlock) for m in model.modules())
    text = report.check_lines(found)
    assert "self-check passed; all positions restored after block 4" in text
    assert "tokens 65 -> 60 55 50 45" in text
    assert found.to_dict()["fits"] is True


@pytest.mark.parametrize("case", [*VISION, *LANGUAGE], ids=lambda c: c.name)
def test_the_rehearsal_passes_for_every_family(case: Any) -> None:
    found = check_model(Skeleton(case.name, case.build().to("meta"), {}, ""), Merge(r=5))
    assert [t.problem for t in found.towers] == [None]
    assert found.fits
    assert found.towers[0].tokens == ()


def test_a_text_tower_beside_an_image_tower() -> None:
    model = hf.VisionTextDualEncoderModel(
        vision_model=hf.ViTModel(hf.ViTConfig(**SIZES)),
        text_model=hf.BertModel(hf.BertConfig(**TEXT)),
    )
    found = checked(model, pixel_values=pixels(1), input_ids=words(1))
    assert [(t.modality, t.patched) for t in found.towers] == [("image", True), ("text", False)]
    assert found.towers[0].tokens == (60, 55, 50, 45)
    assert found.towers[1].tokens == ()
    assert "patched only when this tower itself is given" in report.check_lines(found)


def test_a_refused_model_gives_the_reason() -> None:
    found = checked(timm.create_model("swin_tiny_patch4_window7_224"), x=pixels(1))
    assert not found.fits
    assert "windows" in report.check_lines(found)
    assert found.row is None


class Layer(nn.Module):
    """`x + attention(x)`, then `x + mlp(x)`, under names of its own; or both at once."""

    def __init__(self, parallel: bool = False) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(48), nn.LayerNorm(48)
        self.self_attn = nn.MultiheadAttention(48, 4, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(48, 96), nn.Linear(96, 48)
        self.parallel = parallel

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention_norm(x)
        y = x + self.self_attn(h, h, h, need_weights=False)[0]
        return y + self.fc2(torch.relu(self.fc1(self.ffn_norm(x if self.parallel else y))))


class Mine(nn.Module):
    def __init__(self, parallel: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 48))
        self.layers = nn.ModuleList(Layer(parallel) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_an_unknown_model_gets_a_draft_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_registered", [])
    found = checked(Mine(), x=torch.randn(1, 17, 48))
    assert not found.fits
    assert found.row is not None
    assert found.row_problem is None
    text = report.check_lines(found)
    assert "this draft passes the self-check" in text
    # the printed call is Python, and registering it makes the model work
    call = ast.parse(text[text.index("turbovlm.register(") : text.index("\n))") + 3])
    exec(compile(call, "draft", "exec"), {"turbovlm": turbovlm})
    model = Mine().eval()
    x = torch.randn(1, 17, 48)
    host = model(x)
    turbovlm.apply(model, Merge(r=4))
    assert model(x).shape == host.shape  # the draft restores, to be safe
    assert not torch.allclose(model(x), host, atol=1e-4)


def test_a_draft_that_does_not_pass_says_so() -> None:
    found = checked(Mine(parallel=True), x=torch.randn(1, 17, 48))
    assert found.row is not None
    assert found.row_problem is not None
    assert "parallel" in found.row_problem
    assert "does not pass the self-check" in report.check_lines(found)


def test_nothing_to_draft_from() -> None:
    assert draft(timm.create_model("resnet18")) is None
    found = checked(timm.create_model("resnet18"), x=pixels(1))
    assert "no run of equal blocks" in report.check_lines(found)


def test_a_setting_that_the_model_refuses() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2)
    with pytest.raises(errors.ConfigError, match="lists 3 blocks"):
        check_model(on_meta(model, x=pixels(1)), Merge(r=(1, 2, 3)))


def test_models_that_their_name_does_not_feed(tmp_path: Path) -> None:
    """Text, sound and packed patches: known all the same, only not run."""
    folders = {
        "bert": hf.BertConfig(**TEXT),
        "siglip2": hf.Siglip2VisionConfig(
            **{k: v for k, v in SIZES.items() if k != "image_size"}, num_patches=64
        ),
        "whisper": hf.WhisperConfig(d_model=48, encoder_layers=2, decoder_layers=2),
    }
    for name, config in folders.items():
        config.save_pretrained(tmp_path / name)
        with pytest.raises(errors.ModelError, match="cannot be run from an image and text alone"):
            skeleton(str(tmp_path / name))
        found = check_model(outline(str(tmp_path / name)), Merge(r=5))
        assert found.fits, name
        assert "not run" in report.check_lines(found)
