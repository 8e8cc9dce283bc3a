"""A small BLIP pruned as UPop does, written out in the layout of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tests.workbench.build import wild

HEADS = 2
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "image_size": 32,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,
    "initializer_range": 0.02,
}
TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 16,
    "bos_token_id": 38,
    "eos_token_id": 3,
    "sep_token_id": 3,
    "pad_token_id": 0,
}
SIZES: dict[str, Any] = {"vision_config": VISION, "text_config": TEXT}
VISUAL = "visual_encoder"
# published name of what stands before the layers of a text model -> its name in transformers
STACKS = {"captioning": ("text_decoder.bert",), "vqa": ("text_encoder", "text_decoder.bert")}


@dataclass
class Layer:
    """What is narrowed together: rows of some layers, columns of one.

    The names are those of transformers, ``theirs`` those of the file. The ``kept`` of so many
    ``channels`` are the same in every head, and in query, key and value.
    """

    rows: tuple[str, ...]
    column: str
    theirs: tuple[tuple[str, ...], str]
    channels: int
    kept: list[int]
    copies: int = 1

    def keep(self, size: int) -> Tensor:
        """Indices of a weight's rows or columns, ``size`` of them when whole."""
        starts = torch.arange(size // self.channels)[:, None] * self.channels
        return (starts + torch.tensor(self.kept)).flatten()

    @property
    def scaled(self) -> str | None:
        """The query, where UPop scales logits by the width that is left."""
        return next((name for name in self.rows if name.endswith(".query")), None)


def layers(task: str) -> Iterator[Layer]:
    """Every attention and MLP, with other channels kept in each; one of each kind stays whole."""
    generator = torch.Generator().manual_seed(3)

    def some(channels: int) -> list[int]:
        count = int(torch.randint(1, channels, (), generator=generator))
        return torch.randperm(channels, generator=generator)[:count].sort().values.tolist()

    for i in range(VISION["num_hidden_layers"]):
        own, their = f"vision_model.encoder.layers.{i}", f"{VISUAL}.blocks.{i}"
        head, wide = VISION["hidden_size"] // HEADS, VISION["intermediate_size"]
        yield Layer(
            (f"{own}.self_attn.qkv",),
            f"{own}.self_attn.projection",
            ((f"{their}.attn.qkv",), f"{their}.attn.proj"),
            head,
            some(head) if i else list(range(head)),
        )
        yield Layer(
            (f"{own}.mlp.fc1",),
            f"{own}.mlp.fc2",
            ((f"{their}.mlp.fc1",), f"{their}.mlp.fc2"),
            wide,
            some(wide),
        )
    for stack in STACKS[task]:
        for i in range(TEXT["num_hidden_layers"]):
            name = f"{stack}.encoder.layer.{i}"
            head, wide = TEXT["hidden_size"] // HEADS, TEXT["intermediate_size"]
            for attention in ("attention", "crossattention"):
                rows = tuple(f"{name}.{attention}.self.{x}" for x in ("query", "key", "value"))
                column = f"{name}.{attention}.output.dense"
                yield Layer(rows, column, (rows, column), head, some(head))
            first, last = (f"{name}.intermediate.dense",), f"{name}.output.dense"
            yield Layer(first, last, (first, last), wide, some(wide))


def whole(task: str) -> Any:
    """BLIP of transformers with weights large enough to matter, biases and norms too."""
    kinds = {"captioning": "BlipForConditionalGeneration", "vqa": "BlipForQuestionAnswering"}
    model = getattr(hf, kinds[task])(hf.BlipConfig(**SIZES)).eval()
    wild(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(float("norm" in name.lower() and "weight" in name), 0.2)
    return model


@torch.no_grad()
def masked(task: str, model: Any) -> Any:
    """The same with zeros where UPop prunes: as wide as before, what the pruned model computes."""
    for layer in layers(task):
        for name in layer.rows:
            part = model.get_submodule(name)
            gone = torch.ones(len(part.weight), dtype=torch.bool)
            gone[layer.keep(len(part.weight))] = False
            part.weight[gone], part.bias[gone] = 0.0, 0.0
        if layer.scaled is not None:
            query = model.get_submodule(layer.scaled)
            factor = (layer.channels / len(layer.kept)) ** 0.5
            query.weight *= factor
            query.bias *= factor
    return model


def pruned_file(task: str, model: Any, prune: bool = True) -> dict[str, Tensor]:
    """The state of UPop's compressed model: BLIP's published names, narrow shapes."""
    own = {key: value.detach().clone() for key, value in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for layer in layers(task):
        layer.kept = layer.kept if prune else list(range(layer.channels))
        rows, column = layer.theirs
        for name, their in zip(layer.rows, rows, strict=True):
            for kind in ("weight", "bias"):
                value = own.pop(f"{name}.{kind}")
                state[f"{their}.{kind}"] = value[layer.keep(len(value))]
        weight = own.pop(f"{layer.column}.weight")
        state[f"{column}.weight"] = weight[:, layer.keep(weight.shape[1])]
        state[f"{column}.bias"] = own.pop(f"{layer.column}.bias")
    vision, top = "vision_model", "vision_model.embeddings"
    state[f"{VISUAL}.cls_token"] = own.pop(f"{top}.class_embedding")
    state[f"{VISUAL}.pos_embed"] = own.pop(f"{top}.position_embedding")
    for kind in ("weight", "bias"):
        state[f"{VISUAL}.patch_embed.proj.{kind}"] = own.pop(f"{top}.patch_embedding.{kind}")
        state[f"{VISUAL}.norm.{kind}"] = own.pop(f"{vision}.post_layernorm.{kind}")
        for i in range(VISION["num_hidden_layers"]):
            for n in (1, 2):
                value = own.pop(f"{vision}.encoder.layers.{i}.layer_norm{n}.{kind}")
                state[f"{VISUAL}.blocks.{i}.norm{n}.{kind}"] = value
    assert all(key.startswith("text_") for key in own), "a weight of the vision encoder is left"
    state |= own
    for stack in STACKS[task]:
        state[f"{stack}.embeddings.position_ids"] = torch.arange(16)[None]
    return state


def pixels() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(task: str, model: Any) -> Tensor:
    """Logits of a caption, or of the start of an answer."""
    ids = torch.tensor([[38, 5, 6, 7], [38, 9, 4, 11]])
    if task == "captioning":
        return model(pixel_values=pixels(), input_ids=ids).logits
    images = model.vision_model(pixels()).last_hidden_state
    asked = model.text_encoder(input_ids=ids, encoder_hidden_states=images).last_hidden_state
    return model.text_decoder(input_ids=ids[:, :2], encoder_hidden_states=asked).logits
