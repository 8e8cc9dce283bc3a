"""MiniGPT-v2's published layout, made from a small model with known weights, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from turbovlm.errors import InputError, ModelError

pytest.importorskip("transformers")

from transformers import AutoTokenizer, BlipImageProcessor, LlamaForCausalLM
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionEmbeddings

from tests.workbench.paper.test_minigptv2 import IDS, MASK, VISION, characters, pixels, tiny
from turbovlm_workbench.paper import minigptv2
from turbovlm_workbench.paper.minigptv2 import MiniGPTv2ForConditionalGeneration
from turbovlm_workbench.paper.minigptv2_checkpoint import add_lora, convert_minigptv2, main

State = dict[str, Tensor]
RANK, SCALING = 4, 4.0  # alpha 16
LORA = "llama_model.base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"


def source() -> MiniGPTv2ForConditionalGeneration:
    """The model that the files are made from, on a grid of weights that LoRA can hit exactly."""
    model = tiny()
    width = model.config.vision_config.hidden_size
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p * 1024).round() / 1024)
        layers: Any = model.vision_model.encoder.layers
        for layer in layers:
            layer.self_attn.qkv.bias[width : 2 * width] = 0  # the published keys have no bias
        model.vision_model.post_layernorm.reset_parameters()
    return model


def lora(model: MiniGPTv2ForConditionalGeneration) -> State:
    """A and B in steps of 1/8 and 1/4."""
    generator = torch.Generator().manual_seed(3)
    state: State = {}
    for layer in range(len(model.language_model.model.layers)):
        for name in ("q_proj", "v_proj"):
            for side, shape in (("A", (RANK, 48)), ("B", (48, RANK))):
                steps = torch.randint(-2, 3, shape, generator=generator)
                state[LORA.format(layer, name, side)] = steps / (8 if side == "A" else 4)
    return state


def vision_state(model: MiniGPTv2ForConditionalGeneration) -> State:
    """The EVA file: names written out, a block that is cut off, and what stands after it."""
    tower: Any = model.vision_model
    state: State = {
        "cls_token": tower.embeddings.class_embedding,
        "pos_embed": tower.embeddings.position_embedding,
        "patch_embed.proj.weight": tower.embeddings.patch_embedding.weight,
        "patch_embed.proj.bias": tower.embeddings.patch_embedding.bias,
    }
    for i, layer in enumerate(tower.encoder.layers):
        q_bias, _, v_bias = layer.self_attn.qkv.bias.chunk(3)
        state |= {
            f"blocks.{i}.norm1.weight": layer.layer_norm1.weight,
            f"blocks.{i}.norm1.bias": layer.layer_norm1.bias,
            f"blocks.{i}.attn.q_bias": q_bias,
            f"blocks.{i}.attn.v_bias": v_bias,
            f"blocks.{i}.attn.qkv.weight": layer.self_attn.qkv.weight,
            f"blocks.{i}.attn.proj.weight": layer.self_attn.projection.weight,
            f"blocks.{i}.attn.proj.bias": layer.self_attn.projection.bias,
            f"blocks.{i}.norm2.weight": layer.layer_norm2.weight,
            f"blocks.{i}.norm2.bias": layer.layer_norm2.bias,
            f"blocks.{i}.mlp.fc1.weight": layer.mlp.fc1.weight,
            f"blocks.{i}.mlp.fc1.bias": layer.mlp.fc1.bias,
            f"blocks.{i}.mlp.fc2.weight": layer.mlp.fc2.weight,
            f"blocks.{i}.mlp.fc2.bias": layer.mlp.fc2.bias,
        }
    last = len(tower.encoder.layers)
    extra = (f"blocks.{last}.norm1.weight", f"blocks.{last}.attn.q_bias", "norm.weight")
    extra += ("fc_norm.bias", "head.weight")
    return {k: v.detach().clone() for k, v in state.items()} | {k: torch.ones(5) for k in extra}


class Files:
    """The three published files of one model in a folder."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model = source()
        self.trained = lora(self.model)
        self.trained |= {
            f"llama_proj.{k}": v.clone() for k, v in self.model.projection.state_dict().items()
        }
        self.vision = vision_state(self.model)
        self.folder, self.out = folder, folder / "out"
        llama: Any = LlamaForCausalLM(self.model.config.text_config)
        state = {k: v.clone() for k, v in self.model.language_model.state_dict().items()}
        for layer in range(2):
            for name in ("q_proj", "v_proj"):
                a, b = (self.trained[LORA.format(layer, name, side)] for side in "AB")
                state[f"model.layers.{layer}.self_attn.{name}.weight"] -= SCALING * b @ a
        llama.load_state_dict(state)
        llama.to(dtype).save_pretrained(folder / "llama")
        characters().save_pretrained(folder / "llama")

    def write(self) -> list[Path]:
        """The arguments of ``convert``."""
        wrapped: Any = {"model": self.trained, "optimizer": {"step": 7}, "epoch": 3}
        torch.save(wrapped, self.folder / "trained.pth")
        torch.save(self.vision, self.folder / "eva.pth")
        return [self.folder / name for name in ("trained.pth", "eva.pth", "llama", "out")]

    def convert(self) -> MiniGPTv2ForConditionalGeneration:
        return convert_minigptv2(*self.write(), vision_config=self.model.config.vision_config)


@torch.no_grad()
def logits(model: MiniGPTv2ForConditionalGeneration) -> Tensor:
    return model(pixels(), IDS, MASK).logits


@pytest.mark.parametrize("names", ["plain", "default"])
@pytest.mark.parametrize("ln_vision", [False, True])
def test_round_trip_is_exact(tmp_path: Path, names: str, ln_vision: bool) -> None:
    files = Files(tmp_path)
    if names == "default":  # newer peft, and a table that older transformers saved along
        files.trained = {
            k.replace(".weight", ".default.weight") if "lora" in k else k: v
            for k, v in files.trained.items()
        }
        table = LORA.format(0, "q_proj", "A").replace("q_proj.lora_A.weight", "rotary_emb.inv_freq")
        files.trained[table] = torch.ones(6)
    if ln_vision:
        for name, p in files.model.vision_model.post_layernorm.named_parameters():
            p.data = torch.linspace(0.5, 2, 32)
            files.trained[f"ln_vision.{name}"] = p.data.clone()
    converted = files.convert()
    assert not any(p.is_meta for p in (*converted.parameters(), *converted.buffers()))
    loaded = MiniGPTv2ForConditionalGeneration.from_pretrained(files.out)
    expected = logits(files.model)
    assert torch.equal(logits(converted), expected)
    assert torch.equal(logits(loaded), expected)
    base = LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    loaded.language_model = base
    assert (logits(loaded) - expected).abs().max() > 0.1, "LoRA changes nothing"


def test_tokenizer_and_image_processor_come_along(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.convert()
    text = "[INST] <Img>"
    found = AutoTokenizer.from_pretrained(files.out)(text).input_ids
    assert found == characters()(text).input_ids
    size = BlipImageProcessor.from_pretrained(files.out).size
    assert (size["height"], size["width"]) == (64, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_lora_is_the_literal_formula(dtype: torch.dtype) -> None:
    model: Any = tiny().language_model
    model.to(dtype)
    generator = torch.Generator().manual_seed(5)
    trained = {k: torch.randn(v.shape, generator=generator) for k, v in lora(tiny()).items()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    add_lora(model, trained, alpha=6.0)
    for key, value in model.state_dict().items():
        parts = key.split(".")
        expected = before[key].float()
        if "q_proj" in key or "v_proj" in key:
            a, b = (trained[LORA.format(parts[2], parts[4], side)] for side in "AB")
            for k in range(RANK):
                expected += 6.0 / RANK * torch.outer(b[:, k], a[k])
            assert not torch.equal(value, before[key])
        torch.testing.assert_close(value, expected.to(dtype), atol=1e-6, rtol=1e-3)


def test_everything_gets_llamas_data_type(tmp_path: Path) -> None:
    files = Files(tmp_path, torch.float16)
    files.convert()
    loaded = MiniGPTv2ForConditionalGeneration.from_pretrained(files.out)
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}


def test_positions_are_resampled(tmp_path: Path) -> None:
    """From 4 x 4 patches of the file to 8 x 8 of the model, as transformers resamples them."""
    files = Files(tmp_path)
    small = tiny(image_size=32).config.vision_config
    embeddings = Blip2VisionEmbeddings(small)
    files.vision["pos_embed"] = embeddings.position_embedding.detach()
    expected = embeddings.interpolate_pos_encoding(torch.empty(1, 65, 32), 64, 64)
    found = files.convert().vision_model.embeddings.position_embedding
    torch.testing.assert_close(found, expected)


def drop(name: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(name)


def put(name: str, *shape: int) -> Callable[[State], None]:
    return lambda state: state.__setitem__(name, torch.zeros(*shape))


A, B = (LORA.format(1, "v_proj", side) for side in "AB")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("trained", drop("llama_proj.bias"), r"trained.pth .* missing \(llama_proj.bias.*: give"),
        ("trained", drop(A), r"trained.pth .*missing \(llama_model.*layers.1.*v_proj.lora_A"),
        ("trained", put("ln_vision.weight", 32), r"missing \(ln_vision.bias"),
        ("trained", put("llama_proj.weight", 48, 64), r"\(48, 64\) instead of \(48, 128\)"),
        ("trained", put(B, 48, 3), r"v_proj.lora_B.weight is \(48, 3\) instead of \(48, 4\)"),
        ("trained", put("query_tokens", 1), r"trained.pth .*unknown \(query_tokens.*: give mini"),
        ("vision", drop("blocks.2.attn.v_bias"), r"eva.pth .* missing \(blocks.2.attn.v_bias.*: g"),
        ("vision", put("blocks.2.ls1.gamma", 32), r"unknown \(blocks.2.ls1.gamma"),
        ("vision", put("blocks.4.norm1.weight", 32), r"unknown \(blocks.4.norm1.weight"),
        ("vision", put("pos_embed", 1, 20, 32), r"pos_embed is \(1, 20, 32\) instead of"),
        ("vision", put("cls_token", 1, 1, 31), r"cls_token is .*: give BLIP-2's eva_vit_g.pth"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, part: str, change: Callable[[State], None], message: str
) -> None:
    files = Files(tmp_path)
    change(getattr(files, part))
    with pytest.raises(ModelError, match=message):
        files.convert()
    assert not files.out.exists()


def test_unusable_folders_are_named(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.out.mkdir()
    (files.out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="out exists and is not an empty folder: give a new one"):
        files.convert()
    (files.out / "notes.txt").unlink()
    weights, names = tmp_path / "llama/model.safetensors", tmp_path / "llama/tokenizer.json"
    weights.rename(tmp_path / "aside")
    with pytest.raises(ModelError, match=r"cannot load LLaMA from .*llama"):
        files.convert()
    names.unlink()
    with pytest.raises(ModelError, match=r"llama has no tokenizer .tokenizer.json or"):
        files.convert()
    (tmp_path / "llama/config.json").unlink()
    with pytest.raises(ModelError, match=r"no transformers folder .*Llama-2-7b-chat-hf"):
        files.convert()
    assert list(files.out.iterdir()) == []


def test_an_incomplete_llama_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    files = Files(tmp_path)
    path = tmp_path / "llama/model.safetensors"
    state = load_file(path)
    del state["model.norm.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"llama lacks 1 weights \(model.norm.weight"):
        files.convert()
    assert not files.out.exists()


def test_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path)
    trained, vision, llama, out = map(str, files.write())
    arguments = [trained, out, "--vision", vision, "--llama", llama]
    with pytest.raises(SystemExit) as stopped:  # the published sizes do not fit the small files
        main(arguments)
    assert stopped.value.code == 2
    assert "trained.pth does not fit MiniGPT-v2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--vision eva_vit_g.pth --llama Llama-2-7b-chat-hf" in capsys.readouterr().out
    for name, value in VISION.items():
        monkeypatch.setitem(minigptv2.VISION, name, value)
    main([*arguments, "--alpha", "16"])
    assert "4 LoRA products merged" in capsys.readouterr().out
    loaded = MiniGPTv2ForConditionalGeneration.from_pretrained(out)
    assert torch.equal(logits(loaded), logits(files.model))
