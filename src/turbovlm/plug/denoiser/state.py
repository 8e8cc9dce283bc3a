"""What a patched denoiser remembers: the setting, and the state of the forward that is running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from turbovlm.config import MergeRestore
from turbovlm.errors import TurboError, UnsupportedInput
from turbovlm.maths.fold import Fold, fold_tokens
from turbovlm.maths.match import unit_rows
from turbovlm.maths.sets import EvenOdd, Sets, grid_sets
from turbovlm.maths.sketch import SKETCH_WIDTH, directions, sketch
from turbovlm.plug.denoiser.guide import (
    ATTENDED_WEIGHT,
    changed,
    is_cross,
    received,
    similarity,
)
from turbovlm.plug.denoiser.row import Denoiser
from turbovlm.plug.state import Patch
from turbovlm.plug.torch_private import in_backward

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

    patch: DenoiserPatch
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

    patch: DenoiserPatch
    host: type[nn.Module]
    names: tuple[str, ...]


class DenoiserCall:
    """The state of one forward through the denoiser.

    Attributes:
        batch: samples.
        grid: height and width of the visual tokens at the first level.
        ratios: by kind of module, at this time of the denoising.
        seed: ``()`` int64 that differs from step to step; None where destinations are fixed.
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
        seed: Tensor | None,
        paired: bool | Tensor,
    ) -> None:
        self.batch, self.grid = batch, grid
        self.ratios, self.seed, self.paired = ratios, seed, paired
        self.place = -1, 0
        self.block: Tensor | None = None
        self.shared: tuple[int, int, Fold] | None = None
        self.onto: dict[int, Tensor] = {}
        self.moves: list[Move] = []

    def again(self) -> DenoiserCall:
        """The same forward, for a block that runs a second time."""
        return DenoiserCall(self.batch, self.grid, self.ratios, self.seed, self.paired)

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


class DenoiserPatch(Patch[MergeRestore, DenoiserCall, DenoiserCall]):
    """One patched denoiser."""

    def __init__(self, row: Denoiser, config: MergeRestore) -> None:
        super().__init__(config)
        self.row, self.rule = row, config.rule

    def call_of(self, root: nn.Module, given: Mapping[str, Any]) -> DenoiserCall:
        """The state of the forward that starts now, from what the denoiser is given by name."""
        self.memory.sweep()
        latent, time = given[self.row.latent], given["timestep"]
        return DenoiserCall(
            latent.shape[0],
            self._grid(root, given),
            self._ratios(time),
            self._seed(time, latent),
            _paired(latent),
        )

    def enter_block(self, x: Tensor) -> tuple[DenoiserCall, bool]:
        """The call that a block with these tokens belongs to; and whether it runs again.

        Gradient checkpointing runs blocks in the backward, outside their denoiser.
        """
        compiling = torch.compiler.is_compiling()
        call = self.current()
        if call is not None:
            if torch.is_grad_enabled() and not compiling:
                self.memory.keep(x, call)
            return call, False
        known = None if compiling or not in_backward() else self.memory.find(x)
        if known is None:
            return self.running(), False
        return known.again(), True

    def running(self) -> DenoiserCall:
        """The call that this thread (or the tracing compiler) is running."""
        call = self.current()
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
        call, tokens = self.running(), x.shape[1]
        call.arrive(site, x)
        ratio = call.ratios[site.kind]
        fold = None
        if ratio and tokens >= self.config.min_tokens:
            fold = self._fold(call, site, module, x, text, int(tokens * ratio))
        if self.recorders:
            call.moves.append(Move(site.name, site.kind, tokens, fold))
        return fold

    def _fold(
        self,
        call: DenoiserCall,
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
        parts = self._sets(call, tokens, site.block, x.device)
        r = min(r, parts.source_count)
        if r == 0:
            return None
        measuring = module if own or is_cross(site.attention) else site.attention
        fold = self._match(call, measuring, x, text, r, parts, site.block)
        if not own:
            call.shared = site.block, r, fold
        return fold

    def _match(
        self,
        call: DenoiserCall,
        attention: nn.Module,
        x: Tensor,
        text: Tensor | None,
        r: int,
        parts: Sets,
        block: int,
    ) -> Fold:
        came = x if call.block is None else call.block
        value, share = None, 1.0
        if self.rule.reads_value:
            value, share = self._value(call, attention, came, x, text)
        if self.config.metric == "key":
            metric = similarity(attention, call.halves(x))
        else:
            metric = call.halves(came)
        if self.config.metric == "sketch":
            metric = sketch(metric, call.directions(metric))
        # a UNet's tokens are channels first: as rows, everything below is several times as fast,
        # and a single sample is turned by a faster kernel as a matrix
        batch, tokens, width = metric.shape
        metric = metric.reshape(batch * tokens, width).contiguous().view(batch, tokens, width)
        fold = fold_tokens(
            unit_rows(metric), value, r, parts, self.rule,
            block=block, share=share, restore=self.config.restore,
        )  # fmt: skip
        return fold.repeat(2 if call.paired is True else 1)

    def _sets(self, call: DenoiserCall, tokens: int, block: int, device: torch.device) -> Sets:
        """Sources and destinations among the tokens of this level."""
        if self.config.destinations == "bipartite":
            return EvenOdd(tokens)
        grid, cell = call.level(tokens), self.config.cell
        seed = None if call.seed is None else call.seed + block * 7919
        return grid_sets(grid, (min(cell[0], grid[0]), min(cell[1], grid[1])), seed, device)

    def _value(
        self, call: DenoiserCall, attention: nn.Module, came: Tensor, x: Tensor, text: Tensor | None
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

    def _seed(self, time: Any, latent: Tensor) -> Tensor | None:
        if self.config.seed is None or self.config.destinations == "bipartite":
            return None
        clock = torch.as_tensor(time, device=latent.device).flatten()[:1].sum()
        return (clock.double() * (1000 / self.row.clock)).long() + self.config.seed * 104729


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
