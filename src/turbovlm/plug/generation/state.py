"""What a patched denoiser remembers: the setting, and the state of the forward that is running."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from turbovlm.config import MergeRestore
from turbovlm.errors import TurboError, UnsupportedInput
from turbovlm.maths.fold import Fold
from turbovlm.maths.generation import (
    SKETCH_WIDTH,
    Sets,
    directions,
    match,
    sets,
    sketch,
    uses_value,
)
from turbovlm.plug.generation.guide import (
    ATTENDED_WEIGHT,
    changed,
    is_cross,
    received,
    similarity,
)
from turbovlm.plug.generation.row import Denoiser

Kind = Literal["self_attention", "cross_attention", "feed_forward", "whole"]


@dataclass(frozen=True)
class Move:
    """What one module merged, when recording.

    Attributes:
        name: of the module in the denoiser.
        kind: what it is.
        tokens: visual tokens that came in, N.
        fold: what was merged and how it was restored; None where nothing was.
    """

    name: str
    kind: Kind
    tokens: int
    fold: Fold | None


@dataclass(frozen=True)
class ModuleSite:
    """Where a module stands: its patch, its block, and what the block measures tokens with."""

    patch: Patch
    host: type[nn.Module]
    names: tuple[str, ...]
    name: str
    kind: Kind
    block: int
    attention: nn.Module
    row: Denoiser


@dataclass(frozen=True)
class PlainSite:
    """Where a denoiser or a block stands."""

    patch: Patch
    host: type[nn.Module]
    names: tuple[str, ...]


class Call:
    """The state of one forward through the denoiser.

    Attributes:
        batch: samples.
        grid: height and width of the visual tokens at the first level.
        ratios: by kind of module, at this time of the denoising.
        lot: ``()`` int64 that differs from step to step; None where destinations are fixed.
        paired: whether the second half of the batch is the first half again, as classifier-free
            guidance has it: a bool, or ``()`` bool where asking would stop an accelerator.
        place: the running block and its number of tokens.
        block: tokens that came into the running block.
        shared: the running block, r, and the plan that its modules share.
        onto: by width, the directions that tokens are sketched on.
        moves: what was merged, when recording.
    """

    def __init__(
        self,
        batch: int,
        grid: tuple[int, int],
        ratios: Mapping[str, float],
        lot: Tensor | None,
        paired: bool | Tensor,
    ) -> None:
        self.batch, self.grid = batch, grid
        self.ratios, self.lot, self.paired = ratios, lot, paired
        self.place = -1, 0
        self.block: Tensor | None = None
        self.shared: tuple[int, int, Fold] | None = None
        self.onto: dict[int, Tensor] = {}
        self.moves: list[Move] = []

    def arrive(self, site: ModuleSite, x: Tensor) -> None:
        """Check that a module gets whole images, and as many tokens as its block before it.

        Raises:
            UnsupportedInput: if it gets anything else.
        """
        tokens, height, width = x.shape[1], *self.level(x.shape[1])
        block, before = self.place
        self.place = site.block, tokens
        if site.kind == "whole":
            self.block = None  # what it gets is what enters the block
        whole = height * width == tokens and x.shape[0] == self.batch
        if whole and (block != site.block or before == tokens):
            return
        raise UnsupportedInput(
            f"{site.name} got {x.shape[0]} x {tokens} tokens, which are not {self.batch} images of "
            f"{self.grid[0]} x {self.grid[1]} or a level of them: chunked feed-forward, or tokens "
            "added beside the image, cannot be followed; switch that off, or turbovlm.remove(model)"
        )

    def halves(self, x: Tensor) -> Tensor:
        """What a plan is measured on, ``(B, ...)``: the mean of paired halves, once; or ``x``."""
        if self.paired is False:
            return x
        first, second = x.chunk(2)
        mean = (first + second) / 2
        if self.paired is True:
            return mean
        return torch.where(self.paired, torch.cat([mean, mean]), x)

    def directions(self, x: Tensor) -> Tensor | None:
        """What tokens of this width are sketched on, hashed once a forward; None for narrow."""
        width = x.shape[-1]
        if width <= SKETCH_WIDTH:
            return None
        if width not in self.onto:
            self.onto[width] = directions(width, x.device)
        return self.onto[width]

    def level(self, tokens: int) -> tuple[int, int]:
        """Height and width of the first level with no more tokens; each halves, rounding up."""
        height, width = self.grid
        while height * width > tokens:
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width


class Patch:
    """One patched denoiser: immutable facts, plus the running call of each thread."""

    def __init__(self, row: Denoiser, config: MergeRestore) -> None:
        self.row, self.config = row, config
        self.recording = False
        self.trace: tuple[Move, ...] | None = None
        self.traced: Call | None = None
        self._threads = threading.local()

    def begin(self, root: nn.Module, given: Mapping[str, Any]) -> Call:
        """The state of the forward that starts now, from what the denoiser is given by name."""
        latent, time = given[self.row.latent], given["timestep"]
        call = Call(
            latent.shape[0],
            self._grid(root, given),
            self._ratios(time),
            self._lot(time, latent),
            _paired(latent),
        )
        self.traced = call  # a block compiled on its own reads this one
        if not torch.compiler.is_compiling():
            self._threads.call = call
        return call

    def end(self, call: Call) -> None:
        """Nothing of the forward stays but the trace."""
        if self.recording:
            self.trace = tuple(call.moves)
        self.traced = None
        if not torch.compiler.is_compiling():
            self._threads.call = None

    def current(self) -> Call:
        """The call that this thread (or the tracing compiler) is running."""
        compiling = torch.compiler.is_compiling()
        call = self.traced if compiling else getattr(self._threads, "call", None)
        if call is None:
            raise TurboError(
                "a patched module ran outside its denoiser, so the image's height and width are "
                "unknown: run the denoiser, or turbovlm.remove(model) first"
            )
        return call

    def fold(
        self, site: ModuleSite, module: nn.Module, x: Tensor, text: Tensor | None
    ) -> Fold | None:
        """What this module merges of its input ``x`` ``(B, N, C)``; None for nothing."""
        call, tokens = self.current(), x.shape[1]
        call.arrive(site, x)
        ratio = call.ratios[site.kind]
        fold = None
        if ratio and tokens >= self.config.min_tokens:
            fold = self._fold(call, site, module, x, text, int(tokens * ratio))
        if self.recording:
            call.moves.append(Move(site.name, site.kind, tokens, fold))
        return fold

    def _fold(
        self,
        call: Call,
        site: ModuleSite,
        module: nn.Module,
        x: Tensor,
        text: Tensor | None,
        r: int,
    ) -> Fold | None:
        batch, tokens, _ = x.shape
        own = self.config.plan == "module" and site.kind == "cross_attention"
        if not own and call.shared is not None and call.shared[:2] == (site.block, r):
            fold = call.shared[2]
            if fold.owner.shape == (batch, tokens):
                return fold
        grid = call.level(tokens)
        lot = None if call.lot is None else call.lot + site.block * 7919
        parts = sets(grid, self.config, lot, x.device)
        r = min(r, parts.source.shape[0])
        if r == 0:
            return None
        measuring = module if own or is_cross(site.attention) else site.attention
        fold = self._match(call, measuring, x, text, r, parts, site.block)
        if not own:
            call.shared = site.block, r, fold
        return fold

    def _match(
        self,
        call: Call,
        attention: nn.Module,
        x: Tensor,
        text: Tensor | None,
        r: int,
        parts: Sets,
        block: int,
    ) -> Fold:
        came = x if call.block is None else call.block
        value, share = None, 1.0
        if uses_value(self.config):
            value, share = self._value(call, attention, came, x, text)
        if self.config.metric == "key":
            metric = similarity(attention, call.halves(x))
        else:
            metric = call.halves(came)
        if self.config.metric == "sketch":
            metric = sketch(metric, call.directions(metric))
        copies = 2 if call.paired is True else 1
        return match(metric, value, r, parts, self.config, block, share, copies)

    def _value(
        self, call: Call, attention: nn.Module, came: Tensor, x: Tensor, text: Tensor | None
    ) -> tuple[Tensor, float | Tensor]:
        """A, and the share of the default weight that it has.

        Under guidance it is what the prompt changed in the tokens that ``came`` into the block;
        without, or where the paper's way is asked for, attention received by what the module
        reads, ``x``.
        """
        paired = call.paired
        if self.config.plan == "block" and paired is True:
            return changed(*_halves(came)), 1.0
        text = None if text is None else call.halves(text)
        attended = received(attention, call.halves(x), text)
        if self.config.plan == "module" or isinstance(paired, bool):
            return attended, ATTENDED_WEIGHT
        moved = changed(*_halves(came)).repeat(2, 1)
        return torch.where(paired, moved, attended), torch.where(paired, 1.0, ATTENDED_WEIGHT)

    def _grid(self, root: nn.Module, given: Mapping[str, Any]) -> tuple[int, int]:
        latent, side = given[self.row.latent], self.row.patch_of(root)
        if self.row.ids is None:
            return latent.shape[-2] // side, latent.shape[-1] // side
        ids = given[self.row.ids]
        ids = ids[0] if ids.dim() == 3 else ids
        return int(ids[:, 1].max()) + 1, int(ids[:, 2].max()) + 1

    def _ratios(self, time: Any) -> dict[str, float]:
        ratio, config = self.config.ratio, self.config
        if isinstance(ratio, tuple):
            past = (
                1
                - float(time if not isinstance(time, Tensor) else time.flatten()[0])
                / self.row.clock
            )
            ratio = ratio[min(int(max(past, 0.0) * len(ratio)), len(ratio) - 1)]
        own = {
            "self_attention": config.self_attention,
            "cross_attention": config.cross_attention,
            "feed_forward": config.feed_forward,
        }
        # a part of the denoising without merging is without any
        ratios = {
            kind: ratio if value is None or not ratio else value for kind, value in own.items()
        }
        return {**ratios, "whole": min(ratios["self_attention"], ratios["feed_forward"])}

    def _lot(self, time: Any, latent: Tensor) -> Tensor | None:
        if self.config.seed is None or self.config.destinations == "bipartite":
            return None
        clock = torch.as_tensor(time, device=latent.device).flatten()[:1].sum()
        return (clock.double() * (1000 / self.row.clock)).long() + self.config.seed * 104729

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(self.__dict__)
        for running in ("_threads", "trace", "traced"):
            kept.pop(running)
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.trace, self.traced = None, None
        self._threads = threading.local()


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2)
    return first, second


def _paired(latent: Tensor) -> bool | Tensor:
    half = latent.shape[0] // 2
    if latent.shape[0] % 2:
        return False
    if latent.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.equal(latent[:half], latent[half:])
    return (latent[:half] == latent[half:]).all()
