"""BLIP for NLVR2 against a literal reference, and its published cost."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.nn import functional as F

import turbovlm
from turbovlm.errors import ConfigError, InputError
from turbovlm.measure import flops
from turbovlm_workbench.paper.nlvr import BlipForNlvr, NlvrConfig

ENC, HEADS, LAYERS = 39, 2, 4
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
}
TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,  # not the vision encoder's width
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 16,
    "bos_token_id": 38,
    "eos_token_id": 3,
    "sep_token_id": 3,
}


def config(**vision: Any) -> NlvrConfig:
    return NlvrConfig(vision_config={**VISION, **vision}, text_config=TEXT, enc_token_id=ENC)


def build(**vision: Any) -> BlipForNlvr:
    """Seeded weights, biases and norms included, that are large enough to matter."""
    model = BlipForNlvr(config(**vision)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 1.2 / parameter[0].numel() ** 0.5)
            elif "norm" in name.lower() and name.endswith("weight"):
                parameter.normal_(1, 0.2)
            else:
                parameter.normal_(0, 0.2)
    return model


def inputs(pairs: int = 3, words: int = 9) -> dict[str, Tensor]:
    """Statements of different lengths, padded on the right."""
    torch.manual_seed(1)
    mask = (torch.arange(words) < words - torch.arange(pairs)[:, None]).long()
    return {
        "pixel_values": torch.randn(pairs, 2, 3, 32, 32),
        "input_ids": torch.randint(4, 38, (pairs, words)) * mask,
        "attention_mask": mask,
    }


@torch.no_grad()
def logits(model: BlipForNlvr, **changes: Tensor) -> Tensor:
    return model(**{**inputs(), **changes}).logits


def literal(model: BlipForNlvr, images: Tensor, ids: list[int]) -> Tensor:
    """One statement without padding, from the weights alone: every head and token in a loop.

    ``images`` are the vision encoder's tokens ``(2, N, C)`` of the pair.
    """
    w = {name: value.double() for name, value in model.state_dict().items()}
    first, second = images.double()

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(name: str, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (
            linear(f"{name}.query", x),
            linear(f"{name}.key", seen),
            linear(f"{name}.value", seen),
        )
        width = q.shape[-1] // HEADS
        rows = []
        for token in range(len(q)):
            heads = []
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                scores = torch.stack([q[token, part] @ key[part] for key in k]) / math.sqrt(width)
                weights = scores.exp() / scores.exp().sum()
                heads.append(sum(p * value[part] for p, value in zip(weights, v, strict=True)))
            rows.append(torch.cat(heads))  # type: ignore[arg-type]
        return torch.stack(rows)

    top = "text_encoder.embeddings"
    words = w[f"{top}.word_embeddings.weight"][[ENC, *ids[1:]]]
    x = norm(f"{top}.LayerNorm", words + w[f"{top}.position_embeddings.weight"][: len(ids)])
    for index in range(LAYERS):
        layer = f"text_encoder.encoder.layer.{index}"
        own = linear(f"{layer}.attention.output.dense", attend(f"{layer}.attention.self", x, x))
        x = norm(f"{layer}.attention.output.LayerNorm", own + x)
        cross = f"{layer}.crossattention"
        a = linear(f"{cross}.output.dense0", attend(f"{cross}.self0", x, first))
        b = linear(f"{cross}.output.dense1", attend(f"{cross}.self1", x, second))
        both = (a + b) / 2
        if index >= LAYERS // 2:
            both = linear(f"{cross}.output.merge_layer", torch.cat((a, b), dim=-1))
        x = norm(f"{cross}.output.LayerNorm", both + x)
        mlp = linear(f"{layer}.output.dense", F.gelu(linear(f"{layer}.intermediate.dense", x)))
        x = norm(f"{layer}.output.LayerNorm", mlp + x)
    return linear("cls_head.2", linear("cls_head.0", x[0]).clamp(min=0))


@torch.no_grad()
def test_the_twin_layers_equal_the_literal_reference() -> None:
    model, given = build(), inputs()
    got = model(**given).logits
    for pair in range(3):
        images = model.vision_model(given["pixel_values"][pair]).last_hidden_state
        length = int(given["attention_mask"][pair].sum())
        expected = literal(model, images, given["input_ids"][pair, :length].tolist())
        assert torch.allclose(got[pair].double(), expected, atol=1e-5)
    assert got.std(0).min() > 0.01  # answers differ, so that agreeing means something


def test_both_images_are_used_in_order() -> None:
    model, pixels = build(), inputs()["pixel_values"]
    plain = logits(model)
    for changed in (
        pixels.flip(1),
        torch.stack((pixels[:, 0], pixels[:, 0]), 1),
        torch.stack((pixels[:, 1], pixels[:, 1]), 1),
    ):
        assert (logits(model, pixel_values=changed) - plain).abs().min() > 1e-3


def test_the_first_token_is_enc_whatever_it_was() -> None:
    model, ids = build(), inputs()["input_ids"]
    plain = logits(model)
    other, second = ids.clone(), ids.clone()
    other[:, 0], second[:, 1] = 5, 5
    assert torch.equal(logits(model, input_ids=other), plain)
    assert other[0, 0] == 5  # the caller's tensor stays as it was
    assert not torch.allclose(logits(model, input_ids=second), plain, atol=1e-3)


@torch.no_grad()
def test_loss() -> None:
    model, labels = build(), torch.tensor([1, 0, 1])
    output = model(**inputs(), labels=labels)
    expected = -output.logits.log_softmax(-1)[torch.arange(3), labels].mean()
    assert output.loss == pytest.approx(expected.item(), abs=1e-6)
    assert model(**inputs()).loss is None


def test_merging() -> None:
    model = build()
    plain = logits(model)
    turbovlm.apply(model, turbovlm.Merge(r=0))
    assert torch.equal(logits(model), plain)
    turbovlm.remove(model)
    with turbovlm.applied(model, turbovlm.Merge(r=10)) as run:
        assert (logits(model) - plain).abs().max() > 1e-3
    assert [trace.tokens for trace in run.traces] == [(55, 45, 35)]  # the vision encoder alone
    assert torch.equal(logits(model), plain)


def test_the_setting_is_saved_with_the_model(tmp_path: Path) -> None:
    model = build()
    plain = logits(model)
    turbovlm.apply(model, turbovlm.Merge(r=10))
    merged = logits(model)
    model.save_pretrained(tmp_path)
    loaded = BlipForNlvr.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), plain)
    turbovlm.apply(loaded)
    assert torch.equal(logits(loaded), merged)
    by_name = hf.AutoModel.from_pretrained(tmp_path)
    assert isinstance(by_name, BlipForNlvr)
    assert torch.equal(logits(by_name), plain)


def test_a_configuration_keeps_what_it_is_told(tmp_path: Path) -> None:
    default: Any = NlvrConfig()
    assert default.vision_config.layer_norm_eps == 1e-6
    assert default.vision_config.initializer_range == 0.02
    assert default.text_config.num_attention_heads == 12
    told = NlvrConfig(
        vision_config={**VISION, "layer_norm_eps": 1e-5, "initializer_range": 1e-10},
        text_config=hf.BlipTextConfig(**{**TEXT, "num_attention_heads": 8}),
        enc_token_id=7,
    )
    told.save_pretrained(tmp_path)
    read: Any = hf.AutoConfig.from_pretrained(tmp_path)
    assert read.vision_config.layer_norm_eps == 1e-5
    assert read.vision_config.initializer_range == 1e-10
    assert read.text_config.num_attention_heads == 8
    assert read.text_config.encoder_hidden_size == 32
    assert read.enc_token_id == 7


def test_new_weights_are_not_constant() -> None:
    model: Any = BlipForNlvr(config())
    for weight in (
        model.vision_model.encoder.layers[0].mlp.fc1.weight,
        model.text_encoder.encoder.layer[-1].crossattention.output.merge_layer.weight,
        model.cls_head[0].weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pixel_values": torch.zeros(3, 2, 3, 48, 48)},
            r"\(B, 2, 3, 32, 32\).*\(3, 2, 3, 48, 48\)",
        ),
        ({"pixel_values": torch.zeros(3, 2, 3, 28, 28)}, "resize the images to 32 px"),
        ({"pixel_values": torch.zeros(3, 3, 32, 32)}, "a pair of 32 px images"),
        ({"pixel_values": torch.zeros(3, 1, 3, 32, 32)}, "a pair of 32 px images"),
        ({"input_ids": torch.zeros(2, 9).long()}, r"got \(2, 9\) for 3 pairs"),
        ({"attention_mask": torch.ones(3, 8)}, r"got \(3, 8\) for \(3, 9\)"),
    ],
)
def test_wrong_shapes(change: dict[str, Tensor], message: str) -> None:
    model = build()
    started: list[bool] = []
    model.vision_model.register_forward_pre_hook(lambda *_: started.append(True))
    with pytest.raises(InputError, match=message):
        logits(model, **change)
    assert not started


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enc_token_id": 40}, "enc_token_id 40 is outside the vocabulary of 40"),
        ({"vision_config": {**VISION, "image_size": 30}}, "image_size 30 must be a multiple"),
        ({"vision_config": {**VISION, "image_size": [32, 32]}}, "one number each"),
    ],
)
def test_wrong_configurations(change: dict[str, Any], message: str) -> None:
    sizes = {"vision_config": VISION, "text_config": TEXT, "enc_token_id": ENC}
    with pytest.raises(ConfigError, match=message):
        NlvrConfig(**{**sizes, **change})


@cache
def full_size() -> BlipForNlvr:
    with torch.device("meta"):
        return BlipForNlvr(NlvrConfig())


def test_full_size_parameters() -> None:
    """Counted by hand: the patches, 12 vision blocks, the words, 12 text layers, the head."""
    c = 768
    vision = 3 * 256 * c + c + c + 577 * c + 12 * (12 * c * c + 13 * c) + 2 * c
    block = 12 * c * c + 13 * c  # self-attention, MLP and their norms
    twins = 8 * (c * c + c) + 2 * c
    text = (30524 + 512 + 2) * c + 12 * (block + twins) + 6 * (2 * c * c + c)
    head = c * c + c + 2 * c + 2
    assert sum(p.numel() for p in full_size().parameters()) == vision + text + head == 259_372_034


@pytest.mark.parametrize(("r", "expected"), [(0, 132.541), (35, 77.164), (45, 62.208)])
def test_published_flops(r: int, expected: float) -> None:
    """The paper's NLVR rows: one pair of 384 px images, 36 text tokens."""
    model = full_size()
    given = {
        "pixel_values": torch.empty(1, 2, 3, 384, 384, device="meta"),
        "input_ids": torch.ones(1, 36, dtype=torch.long, device="meta"),
    }
    with turbovlm.applied(model, turbovlm.Merge(r=r)):
        assert flops(model, given).gflops == pytest.approx(expected, rel=1e-3)


def test_the_example_runs() -> None:
    example = Path(__file__).parents[3] / "examples/nlvr.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, check=True)
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines() if "  " in line)
    assert lines["unmerged"].strip() != lines["r=16"].strip()
    assert "(181, 165, 149, 133, 117, 101)" in done.stdout
