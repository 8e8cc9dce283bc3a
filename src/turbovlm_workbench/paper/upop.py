"""BLIP with narrowed layers, as UPop (ICML 2023) leaves it after pruning.

UPop takes channels out of the heads of every attention and out of every MLP, each layer as many as
the search found, and leaves the number of heads and the width of the model. Everything but the
narrow vision attention is the code of transformers, so that `turbovlm.apply` finds the vision
encoder by its usual row.

    model = UPopCaptioner.from_pretrained(folder)   # a folder that upop_checkpoint wrote
    turbovlm.apply(model, turbovlm.Merge(r=30))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.errors import ConfigError, require

require("transformers", "hf")

from transformers import (  # noqa: E402 - a missing transformers has named its extra by now
    AutoConfig,
    AutoModel,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
)
from transformers.models.blip.modeling_blip import BlipAttention, BlipMLP  # noqa: E402
from transformers.models.blip.modeling_blip_text import (  # noqa: E402
    BlipTextAttention,
    BlipTextLayer,
)


class UPopCaptionerConfig(BlipConfig):
    """The configuration of a BLIP captioner and the widths that pruning left.

    Args:
        widths: channels of a head by the name of an attention, and of an MLP by the name of the
            module that holds its first layer, as `layers_to_narrow` lists them. What is not named
            is as wide as the configuration says.
    """

    model_type = "upop-blip-captioner"
    widths: dict[str, int] | None = None


class UPopAnswererConfig(UPopCaptionerConfig):
    """The same of a BLIP for visual question answering."""

    model_type = "upop-blip-vqa"


class NarrowAttention(BlipAttention):
    """Attention of BLIP's vision encoder with heads narrower than ``width / heads``.

    The logits are scaled by the head's width before pruning, as UPop's vision encoder does; its
    text layers scale by the width that is left.
    """

    def __init__(self, config: Any, head: int) -> None:
        super().__init__(config)
        self.head_dim = head
        self.qkv = nn.Linear(self.embed_dim, 3 * self.num_heads * head)
        self.projection = nn.Linear(self.num_heads * head, self.embed_dim)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Tokens ``(B, N, C)`` -> tokens and the attention map ``(B, H, N, N)``."""
        joint = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)
        logits = torch.matmul(query, key.transpose(-1, -2)) * self.scale
        shares = self.dropout(torch.softmax(logits, dim=-1))
        mixed = torch.matmul(shares, value).transpose(1, 2).flatten(2)
        return self.projection(mixed), shares


class UPopCaptioner(BlipForConditionalGeneration):
    """A BLIP captioner with narrowed layers.

    Raises:
        ConfigError: if the configuration names a layer that is none, or a width that is too large.
    """

    config_class = UPopCaptionerConfig
    turbovlm_reads = "tokens"  # by cross-attention

    def __init__(self, config: UPopCaptionerConfig) -> None:
        super().__init__(config)
        narrow(self, config.widths or {})


class UPopAnswerer(BlipForQuestionAnswering):
    """A BLIP for visual question answering with narrowed layers; raises as `UPopCaptioner`."""

    config_class = UPopAnswererConfig
    turbovlm_reads = "tokens"

    def __init__(self, config: UPopAnswererConfig) -> None:
        super().__init__(config)
        narrow(self, config.widths or {})


def layers_to_narrow(model: nn.Module) -> Iterator[tuple[str, str, int]]:
    """What pruning can narrow in a BLIP: name, its linear layer to count, and how many it holds.

    The weight of ``name.layer`` has ``parts`` rows for every channel of the width: three times
    the heads for a joint projection, the heads for a query, one for an MLP.
    """
    for name, module in model.named_modules():
        if isinstance(module, BlipAttention):
            yield name, "qkv", 3 * module.num_heads
        elif isinstance(module, BlipTextAttention):
            yield name, "self.query", module.self.num_attention_heads
        elif isinstance(module, BlipMLP):
            yield name, "fc1", 1
        elif isinstance(module, BlipTextLayer):
            yield f"{name}.intermediate", "dense", 1


def narrow(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Make layers narrower, with new weights, in place.

    Args:
        model: a BLIP of transformers, whole.
        widths: as in `UPopCaptionerConfig`.

    Raises:
        ConfigError: if a name is none of `layers_to_narrow`, or a width is not from 1 to the
            present one; nothing has changed then.
    """
    present: dict[str, int] = {}
    for name, layer, parts in layers_to_narrow(model):
        first: Any = model.get_submodule(f"{name}.{layer}")
        present[name] = first.out_features // parts
    for name, width in widths.items():
        if name not in present:
            raise ConfigError(
                f"widths name {name!r}, which is no attention and no MLP of this model: give "
                f"names such as {next(iter(present))!r}"
            )
        if not 1 <= width <= present[name]:
            raise ConfigError(
                f"widths give {name} {width} channels: give 1 to {present[name]}, since pruning "
                "makes layers narrower"
            )
    for name, width in widths.items():
        if width < present[name]:
            _narrow_one(model, name, width)


def _narrow_one(model: nn.Module, name: str, width: int) -> None:
    top, _, last = name.rpartition(".")
    module: Any = model.get_submodule(name)
    if isinstance(module, BlipAttention):
        setattr(model.get_submodule(top), last, NarrowAttention(module.config, width))
    elif isinstance(module, BlipTextAttention):
        one: Any = module.self
        rows = one.num_attention_heads * width
        for part in ("query", "key", "value"):
            setattr(one, part, nn.Linear(getattr(one, part).in_features, rows))
        one.attention_head_size, one.all_head_size = width, rows
        module.output.dense = nn.Linear(rows, module.output.dense.out_features)
    elif isinstance(module, BlipMLP):
        module.fc1 = nn.Linear(module.fc1.in_features, width)
        module.fc2 = nn.Linear(width, module.fc2.out_features)
    else:  # the MLP of a text layer lies in two of its children
        module.dense = nn.Linear(module.dense.in_features, width)
        output: Any = model.get_submodule(f"{top}.output")
        output.dense = nn.Linear(width, output.dense.out_features)


AutoConfig.register(UPopCaptionerConfig.model_type, UPopCaptionerConfig, exist_ok=True)
AutoConfig.register(UPopAnswererConfig.model_type, UPopAnswererConfig, exist_ok=True)
AutoModel.register(UPopCaptionerConfig, UPopCaptioner, exist_ok=True)
AutoModel.register(UPopAnswererConfig, UPopAnswerer, exist_ok=True)
