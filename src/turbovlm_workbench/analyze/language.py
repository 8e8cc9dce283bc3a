"""The visual tokens inside a language model, layer by layer: how alike they are, who reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from turbovlm.errors import InputError, UnknownArchitecture, UnsuitableBlock
from turbovlm.hosts.language import REFUSALS, ROWS
from turbovlm.maths.score import semantic_value
from turbovlm.measure import environment
from turbovlm.plug.attention import row_logits
from turbovlm.plug.language.apply import find, placeholders
from turbovlm.plug.names import bind
from turbovlm.plug.swap import parameters_of, plain_class
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
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        layers = tuple(LayerNumbers(**layer) for layer in data["layers"])
        return cls(**{**data, "layers": layers})


def has_visual_tokens(model: nn.Module) -> bool:
    """Whether `analyze_language` knows the model."""
    try:
        find(model, ROWS, REFUSALS)
    except (UnknownArchitecture, UnsuitableBlock):
        return False
    return True


def analyze_language(
    model: nn.Module, forward: Callable[[Any], object], batches: Iterable[Any], name: str = ""
) -> LanguageAnalysis:
    """Look at the visual tokens in every layer of a vision-language model's language model.

    The guide is the last token of the prompt, from which the answer begins: its row of attention
    is computed alone, no N x N map.

    Args:
        model: one that `turbovlm.VisualTokens` knows, unpatched, in evaluation mode.
        forward: runs it on one batch, by a forward or by ``generate``; prompts that are padded are
            padded on the left.
        batches: of whatever ``forward`` takes.
        name: what to call the model.

    Raises:
        InputError: without a batch, or where no prompt holds a visual token.
        UnknownArchitecture: if no row knows the model.
        UnsuitableBlock: if it is refused, with the reason.
    """
    outer, row = find(model, ROWS, REFUSALS)
    language = getattr(outer, row.language)
    prompt = _Prompt(outer, list(placeholders(outer, row).values()))
    layers = _layers(language)
    found = [_Layer(prompt) for _ in layers]
    device = next(model.parameters()).device
    for batch in batches:
        with torch.inference_mode(), _watching(layers, found, prompt):
            forward(batch)
    if not prompt.counts:
        raise InputError(
            "no prompt with visual tokens was seen: give at least one batch, a picture with each "
            "prompt"
        )
    every = torch.cat(prompt.counts)
    return LanguageAnalysis(
        name,
        type(language).__name__,
        len(every),
        every.double().mean().item(),
        tuple(layer.numbers(index) for index, layer in enumerate(found, start=1)),
        environment(device),
    )


class _Prompt:
    """The prompt that the outer model is running, if it holds pictures.

    Attributes:
        visual: ``(B, N)`` bool, which positions are visual; None between prompts, and while an
            answer is written.
        mask: ``(B, N)`` with 0 for padding, or None.
        counts: visual tokens of each prompt so far.
    """

    def __init__(self, outer: nn.Module, marks: Sequence[int]) -> None:
        self.outer, self.marks = outer, torch.tensor(marks)
        self.names = parameters_of(plain_class(outer).forward)
        self.visual: Tensor | None = None
        self.mask: Tensor | None = None
        self.counts: list[Tensor] = []

    def begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the outer model runs."""
        given = bind(self.names, args, kwargs)
        ids = given.get("input_ids")
        if ids is None:
            return
        visual = torch.isin(ids, self.marks.to(ids.device))
        if visual.any(1).all():
            self.visual, self.mask = visual, given.get("attention_mask")
            self.counts.append(visual.sum(1))

    def end(self, *_: object) -> None:
        """After it."""
        self.visual = None


class _Layer:
    """What was seen of one layer so far, a value a prompt."""

    def __init__(self, prompt: _Prompt) -> None:
        self.prompt = prompt
        self.redundancy: list[Tensor] = []
        self.concentration: list[Tensor] = []
        self.mass: list[Tensor] = []
        self.seen: _LastRow | None = None

    def begin(self, *_: object) -> None:
        """Before the layer runs."""
        if self.prompt.visual is not None:
            self.seen = _LastRow(self.prompt.mask)
            self.seen.__enter__()

    def end(self, _: nn.Module, __: object, out: Any) -> None:
        """After it; ``out`` is None where it raised."""
        seen, self.seen = self.seen, None
        visual = self.prompt.visual
        if seen is None or visual is None:
            return
        seen.__exit__(None, None, None)
        if out is None:
            return
        states = out[0] if isinstance(out, tuple) else out
        self.redundancy.append(token_redundancy(states, visual))
        if seen.value is not None:
            self.concentration.append(attention_concentration(seen.value, visual))
            self.mass.append((seen.value * visual).sum(1))

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
    layers: Sequence[nn.Module], found: Sequence[_Layer], prompt: _Prompt
) -> Iterator[None]:
    """Note the numbers of every layer while prompts run."""
    outer = prompt.outer
    with ExitStack() as stack:
        begin = outer.register_forward_pre_hook(prompt.begin, with_kwargs=True)
        end = outer.register_forward_hook(prompt.end, always_call=True)
        for handle in (begin, end):
            stack.callback(handle.remove)
        for layer, into in zip(layers, found, strict=True):
            before = layer.register_forward_pre_hook(into.begin)
            after = layer.register_forward_hook(into.end, always_call=True)
            for handle in (before, after):
                stack.callback(handle.remove)
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
