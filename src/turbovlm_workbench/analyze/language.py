"""The visual tokens inside a language model, layer by layer: how alike they are, who reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from turbovlm.errors import InputError, UnknownArchitecture
from turbovlm.hosts.language import REFUSALS, ROWS
from turbovlm.maths.score import semantic_value
from turbovlm.measure import environment
from turbovlm.plug.attention import row_logits
from turbovlm.plug.language.apply import find, placeholders
from turbovlm_workbench.analyze.numbers import attention_concentration, token_redundancy


@dataclass(frozen=True)
class LayerNumbers:
    """One layer of the language model, means over the prompts.

    Attributes:
        layer: from 1.
        redundancy: mean pairwise cosine of the visual tokens that leave the layer.
        concentration: share of the last token's attention to visual tokens that the top quarter
            of these holds; None where the layer has no attention.
        mass: share of the last token's attention that goes to visual tokens at all, likewise.
    """

    layer: int
    redundancy: float
    concentration: float | None
    mass: float | None


@dataclass(frozen=True)
class LanguageAnalysis:
    """A finished analysis of a language model.

    Attributes:
        model: what the user called the model.
        language: class of the language model.
        samples: prompts that the means are over.
        visual: visual tokens of a prompt, mean.
        layers: its layers.
        environment: the machine and the versions of the libraries.
    """

    model: str
    language: str
    samples: int
    visual: float
    layers: tuple[LayerNumbers, ...]
    environment: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"kind": "analyze language", **dataclasses.asdict(self)}


def analyze_language(
    model: nn.Module, prompts: Iterable[Mapping[str, Any]], name: str = ""
) -> LanguageAnalysis:
    """Look at the visual tokens in every layer of a vision-language model's language model.

    The guide is the last token of the prompt, from which the answer begins: its row of attention
    is computed alone, no N x N map.

    Args:
        model: one that `turbovlm.VisualTokens` knows, unpatched, in evaluation mode.
        prompts: what the model takes, ``input_ids`` and pixels among it; a batch is padded on the
            left.
        name: what to call the model.

    Raises:
        InputError: without a prompt, or for one without visual tokens.
        UnknownArchitecture: if no row knows the model.
        UnsuitableBlock: if it is refused, with the reason.
    """
    outer, row = find(model, ROWS, REFUSALS)
    language = getattr(outer, row.language)
    marks = list(placeholders(outer, row).values())
    layers = _layers(language)
    found: list[_Layer] = [_Layer() for _ in layers]
    counts: list[Tensor] = []
    for prompt in prompts:
        ids = prompt["input_ids"]
        visual = torch.isin(ids, torch.tensor(marks, device=ids.device))
        if not visual.any(1).all():
            raise InputError("a prompt holds no visual token: give a picture with each")
        counts.append(visual.sum(1))
        with torch.inference_mode(), _watching(layers, found, visual, prompt.get("attention_mask")):
            model(**prompt)
    if not counts:
        raise InputError("there is nothing to analyze: give at least one prompt")
    every = torch.cat(counts)
    return LanguageAnalysis(
        name,
        type(language).__name__,
        len(every),
        every.double().mean().item(),
        tuple(layer.numbers(index) for index, layer in enumerate(found, start=1)),
        environment(every.device),
    )


class _Layer:
    """What was seen of one layer so far, a value a prompt."""

    def __init__(self) -> None:
        self.redundancy: list[Tensor] = []
        self.concentration: list[Tensor] = []
        self.mass: list[Tensor] = []

    def numbers(self, layer: int) -> LayerNumbers:
        """The means."""
        means = [_mean(v) for v in (self.redundancy, self.concentration, self.mass)]
        assert means[0] is not None
        return LayerNumbers(layer, means[0], *means[1:])


def _mean(values: Sequence[Tensor]) -> float | None:
    return torch.cat(list(values)).double().mean().item() if values else None


def _layers(language: nn.Module) -> list[nn.Module]:
    """Its blocks.

    Raises:
        UnknownArchitecture: if it keeps them elsewhere than the others do.
    """
    layers = getattr(language, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnknownArchitecture(f"{type(language).__name__} has no list of layers: report it")
    return list(layers)


@contextmanager
def _watching(
    layers: Sequence[nn.Module], found: Sequence[_Layer], visual: Tensor, mask: Tensor | None
) -> Iterator[None]:
    """Note the numbers of every layer while a prompt runs."""
    with ExitStack() as stack:
        for layer, into in zip(layers, found, strict=True):
            attention = _LastRow(mask)

            def before(*_: object, seen: _LastRow = attention) -> None:
                seen.__enter__()

            def after(
                _: nn.Module, __: object, out: Any, seen: _LastRow = attention, into: _Layer = into
            ) -> None:
                seen.__exit__(None, None, None)
                if out is None:  # the layer raised
                    return
                states = out[0] if isinstance(out, tuple) else out
                into.redundancy.append(token_redundancy(states, visual))
                if seen.value is not None:
                    into.concentration.append(attention_concentration(seen.value, visual))
                    into.mass.append((seen.value * visual).sum(1))

            stack.callback(layer.register_forward_pre_hook(before).remove)
            stack.callback(layer.register_forward_hook(after, always_call=True).remove)
        yield


class _LastRow(TorchFunctionMode):
    """Takes the last query's row of the first attention while it is open, ``(B, N)``."""

    def __init__(self, padding: Tensor | None) -> None:
        super().__init__()
        self.padding = padding
        self.value: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Everything goes on as it came."""
        kwargs = kwargs or {}
        if self.value is None and func is F.scaled_dot_product_attention:
            self._fused(*args, **kwargs)
        out = func(*args, **kwargs)
        eager = func in (torch.softmax, F.softmax, Tensor.softmax) and out.dim() == 4
        if self.value is None and eager:
            self.value = out[:, :, -1].float().mean(1)
        return out

    def _fused(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any,
        scale: float | None = None, **__: Any,
    ) -> None:  # fmt: skip
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        logits = row_logits(query[:, :, -1:], key).float() * factor
        if attn_mask is not None:
            row = attn_mask[:, :, -1]
            logits = (
                logits.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else logits + row
            )
        elif self.padding is not None and self.padding.shape[1] == logits.shape[-1]:
            logits = logits.masked_fill(self.padding[:, None] == 0, -torch.inf)
        self.value = semantic_value(logits)
