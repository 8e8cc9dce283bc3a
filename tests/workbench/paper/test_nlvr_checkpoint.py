"""The published layout of BLIP for NLVR2, and the converter that reads it."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.workbench.paper.test_nlvr import TEXT, VISION, build, config, full_size, inputs, logits
from turbovlm.errors import InputError, ModelError
from turbovlm_workbench.paper.nlvr import BlipForNlvr
from turbovlm_workbench.paper.nlvr_checkpoint import (
    POSITION_IDS,
    convert_nlvr,
    load_published,
    main,
    published_nlvr_key,
)


def published(vision: dict[str, Any], text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the published file, written out from its description."""
    shapes: dict[str, tuple[int, ...]] = {}
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    words, wide = text["hidden_size"], text["intermediate_size"]
    patch, positions = vision["patch_size"], (vision["image_size"] // vision["patch_size"]) ** 2 + 1

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size,), (size,)

    shapes["visual_encoder.cls_token"] = (1, 1, width)
    shapes["visual_encoder.pos_embed"] = (1, positions, width)
    shapes["visual_encoder.patch_embed.proj.weight"] = (width, 3, patch, patch)
    shapes["visual_encoder.patch_embed.proj.bias"] = (width,)
    for index in range(vision["num_hidden_layers"]):
        block = f"visual_encoder.blocks.{index}"
        norm(f"{block}.norm1", width)
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", inner, width)
        linear(f"{block}.mlp.fc2", width, inner)
    norm("visual_encoder.norm", width)
    top, length = "text_encoder.embeddings", text["max_position_embeddings"]
    shapes[POSITION_IDS] = (1, length)
    shapes[f"{top}.word_embeddings.weight"] = (text["vocab_size"], words)
    shapes[f"{top}.position_embeddings.weight"] = (length, words)
    norm(f"{top}.LayerNorm", words)
    for index in range(text["num_hidden_layers"]):
        layer = f"text_encoder.encoder.layer.{index}"
        cross = f"{layer}.crossattention"
        attentions = {f"{layer}.attention.self": words}
        attentions |= {f"{cross}.self0": width, f"{cross}.self1": width}
        for name, seen in attentions.items():
            linear(f"{name}.query", words, words)
            linear(f"{name}.key", words, seen)
            linear(f"{name}.value", words, seen)
        linear(f"{layer}.attention.output.dense", words, words)
        norm(f"{layer}.attention.output.LayerNorm", words)
        linear(f"{cross}.output.dense0", words, words)
        linear(f"{cross}.output.dense1", words, words)
        if index >= text["num_hidden_layers"] // 2:
            linear(f"{cross}.output.merge_layer", words, 2 * words)
        norm(f"{cross}.output.LayerNorm", words)
        linear(f"{layer}.intermediate.dense", wide, words)
        linear(f"{layer}.output.dense", words, wide)
        norm(f"{layer}.output.LayerNorm", words)
    linear("cls_head.0", words, words)
    linear("cls_head.2", 2, words)
    return shapes


def published_state(model: BlipForNlvr) -> dict[str, Tensor]:
    state = {published_nlvr_key(key): value.clone() for key, value in model.state_dict().items()}
    state[POSITION_IDS] = torch.arange(16)[None]
    return state


def save(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize("full", [False, True])
def test_every_published_key_has_its_place(full: bool) -> None:
    model = full_size() if full else build()
    vision, text = model.config.vision_config, model.config.text_config
    assert isinstance(vision, hf.PreTrainedConfig)
    assert isinstance(text, hf.PreTrainedConfig)
    expected = published(vision.to_dict(), text.to_dict())
    expected.pop(POSITION_IDS)
    got = {published_nlvr_key(k): tuple(v.shape) for k, v in model.state_dict().items()}
    assert got == expected


def test_a_converted_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    model = build()
    state = published_state(model)
    shapes = published(VISION, TEXT)
    assert {key: tuple(value.shape) for key, value in state.items()} == shapes
    convert_nlvr(save(tmp_path / "nlvr.pth", state), tmp_path / "out", config())
    loaded = BlipForNlvr.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(model))
    processor = hf.AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = processor(Image.new("RGB", (50, 40), (9, 99, 199)), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 32)
    mean, spread = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    colour = [(v / 255 - m) / s for v, m, s in zip((9, 99, 199), mean, spread, strict=True)]
    assert pixels[0, :, 7, 7].tolist() == pytest.approx(colour, abs=1e-5)


@torch.no_grad()
def test_the_published_vision_encoder_is_timms(tmp_path: Path) -> None:
    """Its keys and its order of queries, keys and values are those of timm, which reads it too."""
    state = published_state(build())
    loaded = load_published(save(tmp_path / "nlvr.pth", state), config())
    encoder = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2, num_classes=0
    ).eval()
    top = "visual_encoder."
    encoder.load_state_dict({k.removeprefix(top): v for k, v in state.items() if top in k})
    images = inputs()["pixel_values"][:, 0]
    expected = encoder.forward_features(images)
    got = loaded.vision_model(images).last_hidden_state
    assert torch.allclose(got, expected, atol=1e-5)
    assert got.std(0).min() > 1e-3


def test_positions_of_another_image_size_are_resampled(tmp_path: Path) -> None:
    model = build()
    save_file(published_state(model), tmp_path / "nlvr.safetensors")
    loaded = load_published(tmp_path / "nlvr.safetensors", config(image_size=48))
    old = model.vision_model.embeddings.position_embedding
    new = loaded.vision_model.embeddings.position_embedding
    assert new.shape == (1, 1 + 12 * 12, 32)
    assert torch.equal(new[:, 0], old[:, 0])
    # independently: Keys' cubic kernel with a = -0.75, pixel centres aligned, edges repeated
    grid, expected = old[0, 1:].view(8, 8, 32).detach(), torch.zeros(12, 12, 32)
    for y in range(12):
        for x in range(12):
            for row, up in cubic((y + 0.5) * 8 / 12 - 0.5):
                for column, across in cubic((x + 0.5) * 8 / 12 - 0.5):
                    expected[y, x] += up * across * grid[row, column]
    assert torch.allclose(new[0, 1:].view(12, 12, 32), expected, atol=1e-5)


def cubic(place: float) -> list[tuple[int, float]]:
    start, a = math.floor(place), -0.75
    taps = []
    for index in range(start - 1, start + 3):
        d = abs(place - index)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        taps.append((min(max(index, 0), 7), near if d <= 1 else far))
    return taps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("visual_encoder.blocks.1.attn.qkv.bias"),
            r"1 keys are missing \(visual_encoder\.blocks\.1\.attn\.qkv\.bias, \.\.\.\)",
        ),
        (lambda s: s.update(temp=torch.zeros(1)), r"1 are unknown \(temp, \.\.\.\)"),
        (
            lambda s: s.update({"cls_head.2.weight": torch.zeros(3, 24)}),
            r"cls_head\.2\.weight is \(3, 24\) instead of \(2, 24\)",
        ),
        (
            lambda s: s.update({"visual_encoder.pos_embed": torch.zeros(1, 60, 32)}),
            r"visual_encoder\.pos_embed is \(1, 60, 32\) instead of \(1, 65, 32\)",
        ),
    ],
)
def test_checkpoints_that_do_not_fit(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = published_state(build())
    change(state)
    with pytest.raises(ModelError, match=rf"bad\.pth does not fit BLIP for NLVR2: .*{message}"):
        convert_nlvr(save(tmp_path / "bad.pth", state), tmp_path / "out", config())
    assert not (tmp_path / "out").exists()


def single_state(model: BlipForNlvr) -> dict[str, Tensor]:
    """What a BLIP of single images holds: one cross-attention, and parts that are not needed."""
    state = {}
    for key, value in published_state(model).items():
        if not any(part in key for part in ("self1.", "dense1.", "merge_layer", "cls_head")):
            state[key.replace("self0.", "self.").replace("dense0.", "dense.")] = value
    return state | {"itm_head.weight": torch.zeros(2, 24), "text_decoder.x": torch.zeros(1)}


def test_a_blip_of_single_images(tmp_path: Path) -> None:
    model = build()
    path = save(tmp_path / "base.pth", single_state(model))
    with pytest.raises(
        ModelError, match=r"self0\.key\.bias|cls_head.*fine-tune this one with --twin"
    ):
        load_published(path, config())
    loaded: Any = load_published(path, config(), twin=True)
    own, theirs = loaded.state_dict(), model.state_dict()
    for key, value in own.items():
        if "merge_layer" in key or "cls_head" in key:
            assert not torch.equal(value, theirs[key])
        else:
            source = key.replace("self1.", "self0.").replace("dense1.", "dense0.")
            assert torch.equal(value, theirs[source]), key
    assert loaded.cls_head[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    twin = save(tmp_path / "twin.pth", published_state(model))
    with pytest.raises(ModelError, match="no single cross-attention to double: leave out --twin"):
        load_published(twin, config(), twin=True)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "nlvr.pth", published_state(build()))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for folder in (tmp_path / "used", path):
        with pytest.raises(InputError, match="is not an empty folder: give a new one"):
            convert_nlvr(path, folder, config())
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    convert_nlvr(path, tmp_path / "empty", config())
    assert (tmp_path / "empty" / "config.json").is_file()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    help_text = capsys.readouterr().out
    assert "python -m turbovlm_workbench.paper.nlvr_checkpoint model_base_nlvr.pth" in help_text
    (tmp_path / "used" / "inner").mkdir(parents=True)
    for words, message in (
        (["gone.pth", "out"], "no weights file"),
        (["gone.pth", "out", "--image-size", "100"], "image_size 100 must be a multiple"),
        (["gone.pth", "used"], "is not an empty folder"),
    ):
        with pytest.raises(SystemExit) as left:
            main([str(tmp_path / words[0]), str(tmp_path / words[1]), *words[2:]])
        assert left.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_without_transformers_the_extra_is_named() -> None:
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'transformers' else find(name, *a)\n"
        "from turbovlm_workbench.paper.nlvr_checkpoint import main\n"
        "main(['a.pth', 'out'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'turbovlm[hf]'" in done.stderr
