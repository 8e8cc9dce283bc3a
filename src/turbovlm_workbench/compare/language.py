"""What a vision-language model costs with fewer tokens, counted from shapes: no weights.

The parts are counted one by one, each by running the host's own code on the meta device. Which
tokens `turbovlm.VisualTokens` keeps depends on values that are not there, but not how many: so the
choice runs on random features, and the language model on a prompt of the length that is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import turbovlm
from turbovlm.config import Merge, Setting, VisualTokens
from turbovlm.hosts.language import REFUSALS, ROWS
from turbovlm.measure.flops import flops
from turbovlm.plug.encoder.trace import Trace
from turbovlm.plug.language.apply import find
from turbovlm.plug.language.images import groups
from turbovlm.plug.language.row import LanguageRow
from turbovlm.plug.language.state import LanguageCall
from turbovlm.plug.swap import site_of
from turbovlm_workbench.load.known import known_values
from turbovlm_workbench.load.picture import picture
from turbovlm_workbench.load.skeleton import TEXT_TOKENS

NEW_TOKENS = 64
"""Length of the answer."""
CACHE_BYTES = 2
"""Of a number in the key-value cache: bf16 or fp16."""


@dataclass(frozen=True)
class Reduced:
    """One way to run the model.

    Attributes:
        configs: what is applied; nothing for the model as it is.
        visual: tokens of the picture that the language model gets.
        tower: GFLOPs from pixels to projected features.
        choosing: of choosing which tokens stay.
        prefill: of the language model over the prompt, the logits of the last token included.
        step: of one more token, the first after the prompt.
        cache_bytes: of the key-value cache after the prompt, with 16-bit numbers.
    """

    configs: tuple[Setting, ...]
    visual: int
    tower: float
    choosing: float
    prefill: float
    step: float
    cache_bytes: int

    @property
    def name(self) -> str:
        """The settings as one would write them."""
        return " and ".join(map(str, self.configs)) or "as it is"

    @property
    def first(self) -> float:
        """GFLOPs up to the first token."""
        return self.tower + self.choosing + self.prefill

    @property
    def answer(self) -> float:
        """GFLOPs of an answer of `NEW_TOKENS`, each further token counted as the first step."""
        return self.first + (NEW_TOKENS - 1) * self.step


@dataclass(frozen=True)
class LanguageCheck:
    """A vision-language model, as it is and with each way to reduce its tokens.

    Attributes:
        name: of the language model's class.
        picture: what the picture is.
        words: text tokens of the prompt.
        rows: the model as it is first.
        share: of the tower among the operations up to the first token.
    """

    name: str
    picture: str
    words: int
    rows: tuple[Reduced, ...]

    @property
    def share(self) -> float:
        """The tower's part of the operations up to the first token, of the model as it is."""
        return self.rows[0].tower / self.rows[0].first

    def allows(self, row: Reduced) -> tuple[float, float]:
        """What the counts allow: speed-up of time to first token, and of the whole answer."""
        whole = self.rows[0]
        return whole.first / row.first, whole.answer / row.answer

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        rows = []
        for row in self.rows:
            first, answer = self.allows(row)
            numbers = {k: v for k, v in vars(row).items() if k != "configs"}
            speedups = {"speedup_first_token": first, "speedup_answer": answer}
            rows.append({"configs": [c.to_dict() for c in row.configs], **numbers, **speedups})
        return {
            "name": self.name,
            "picture": self.picture,
            "text_tokens": self.words,
            "new_tokens": NEW_TOKENS,
            "rows": rows,
        }


def check_language(
    model: nn.Module, merge: Merge | None, keep: VisualTokens, size: int | None
) -> tuple[LanguageCheck, tuple[Trace, ...]]:
    """Count a vision-language model on the meta device.

    Args:
        model: the whole model.
        merge: what would be merged in its tower; None where that does not fit.
        keep: which tokens of the picture the language model would get.
        size: side of the picture in pixels; None is the model's own.

    Returns:
        The counts, and what was merged in the towers.

    Raises:
        UnknownArchitecture: if no row describes it.
        UnsuitableBlock: if it is refused, with the reason.
        ConfigError: if a setting does not fit.
    """
    outer, row = find(model, ROWS, REFUSALS)
    counting = _Counting(model, outer, row, size)
    with turbovlm.applied(model, keep, record=False):  # it notes how the tokens of a tile lie
        tower, features = counting.tower()
        left, choosing = counting.choose(features)
    whole = sum(map(len, features))
    ways: list[tuple[tuple[Setting, ...], float, int]] = [((), tower, whole)]
    traces: tuple[Trace, ...] = ()
    if merge is not None:
        with turbovlm.applied(model, merge) as run:
            merged, restored = counting.tower()
            traces = run.traces
        ways.append(((merge,), merged, sum(map(len, restored))))
    ways += [((*configs, keep), cost, left) for configs, cost, _ in tuple(ways)]
    costs = {visual: counting.prompt(visual) for visual in {visual for _, _, visual in ways}}
    rows = [
        Reduced(configs, visual, cost, choosing if keep in configs else 0.0, *costs[visual])
        for configs, cost, visual in ways
    ]
    language = type(counting.language).__name__.removeprefix("Turbo")
    return LanguageCheck(language, counting.picture.words, TEXT_TOKENS, tuple(rows)), traces


class _Counting:
    """The parts of one model."""

    def __init__(
        self, model: nn.Module, outer: nn.Module, row: LanguageRow, size: int | None
    ) -> None:
        self.model, self.outer, self.row = model, outer, row
        self.picture = picture(row, outer.config, size)
        self.language: Any = getattr(outer, row.language)
        embedding = self.language.get_input_embeddings().weight
        self.width, self.head = embedding.shape[1], cast(Any, model).get_output_embeddings()

    def tower(self) -> tuple[float, list[Tensor]]:
        """GFLOPs from pixels to projected features, and these, an entry an image or tile."""
        found: list[Any] = []

        def run(outer: Any, _: object) -> None:
            with known_values():
                found.append(outer.get_image_features(**self.picture.given).pooler_output)

        return flops(self.outer, (), call=run).gflops, found[0]

    def choose(self, features: Any) -> tuple[int, float]:
        """How many tokens stay under the setting that is applied, and GFLOPs of choosing them."""
        patch = site_of(self.outer).patch
        ids = _prompt(self.row, [len(f) for f in features], patch.tokens["image"])
        x = torch.randn(*ids.shape, self.width, generator=torch.Generator().manual_seed(0))
        call = LanguageCall(ids, features={"image": features})
        dropped: list[int] = []

        def run(outer: nn.Module, _: object) -> None:
            chosen = groups(patch, call, x)
            dropped.append(sum(g.column[:, g.free].numel() - g.kept.numel() for g in chosen))

        cost = flops(self.outer, (), call=run).gflops
        return sum(map(len, features)) - dropped[0], cost

    def prompt(self, visual: int) -> tuple[float, float, int]:
        """GFLOPs of prefill and of a decoding step, and bytes of the cache in between."""
        if getattr(self.language.config, "num_experts", None):
            # one product a token: the grouped kernel has no formula
            self.language.set_experts_implementation("batched_mm")
        cache: list[Any] = []

        def run(length: int) -> float:
            x = torch.empty(1, length, self.width, device="meta")

            def once(outer: nn.Module, _: object) -> None:
                given = {"past_key_values": cache[0]} if cache else {}
                with known_values():
                    output = self.language(inputs_embeds=x, use_cache=True, **given)
                    if self.head is not None:
                        self.head(output[0][:, -1:])
                cache[:] = [output.past_key_values]

            return flops(self.model, (), call=once).gflops

        prefill = run(visual + TEXT_TOKENS)
        held = sum(_held(cache[0]))
        return prefill, run(1), held * CACHE_BYTES


def _prompt(row: LanguageRow, lengths: list[int], image: int) -> Tensor:
    """``(1, N)`` ids: the picture's placeholders; tiles are apart where the host has text there."""
    apart = [image + 1] if row.layout in ("runs", "latents") else []
    ids = [token for length in lengths for token in [image] * length + apart]
    return torch.tensor([ids])


def _held(cache: Any) -> Iterator[int]:
    """Numbers in each tensor of a cache, of recurrent layers too."""
    for layer in cache.layers:
        for value in tree_leaves(vars(layer)):
            if isinstance(value, Tensor) and value.dim() > 2:  # others count or mark
                yield value.numel()
