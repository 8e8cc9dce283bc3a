"""What a patched denoiser remembers: the setting, and the state of the forward that is running."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    received,
    similarity,
)
from turbovlm.plug.denoiser.row import Denoiser
from turbovlm.plug.denoiser.run import PipelineRun
from turbovlm.plug.state import Memory, Patch
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
        batch: images: samples, or frames of videos.
        grid: height and width of the visual tokens at the first level.
        ratios: by kind of module, at this time of the denoising.
        seed: ``()`` int64 that differs from step to step; None where destinations are fixed.
        paired: whether the second half of the batch is the first half again, with the prompt.
        place: the running block and its number of tokens.
        block: tokens that came into the running block.
        text: ``(B, T, D)`` tokens of the prompt that came with them, or None.
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
        paired: bool,
    ) -> None:
        self.batch, self.grid = batch, grid
        self.ratios, self.seed, self.paired = ratios, seed, paired
        self.place = -1, 0
        self.block: Tensor | None = None
        self.text: Tensor | None = None
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
        if not self.paired:
            return x
        first, second = x.chunk(2)
        return (first + second) / 2

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
        self.row, self.rule, self.preset = row, config.rule, config.preset

    def _fresh(self) -> None:
        super()._fresh()
        self.traced_run: PipelineRun | None = None
        self.grids: Memory[tuple[int, tuple[int, int]]] = Memory()

    def __getstate__(self) -> dict[str, Any]:
        running = ("traced_run", "grids")
        return {k: v for k, v in super().__getstate__().items() if k not in running}

    @contextmanager
    def running_in(self, run: PipelineRun) -> Iterator[None]:
        """While open, the forwards of this thread belong to a pipeline."""
        before = self._run()
        self.traced_run = self._threads.run = run  # as with `begin`
        try:
            yield
        finally:
            self.traced_run = self._threads.run = before

    def _run(self) -> PipelineRun | None:
        if torch.compiler.is_compiling():
            return self.traced_run
        return getattr(self._threads, "run", None)

    def call_of(self, root: nn.Module, given: Mapping[str, Any]) -> DenoiserCall:
        """The state of the forward that starts now, from what the denoiser is given by name.

        Raises:
            UnsupportedInput: for an odd batch that is told to be two halves.
        """
        self.memory.sweep()
        self.grids.sweep()
        latent, time = given[self.row.latent], given["timestep"]
        return DenoiserCall(
            latent.shape[0] * (latent.shape[2] if self.row.video else 1),
            self._grid(root, given),
            self._ratios(time),
            self._seed(time, latent.device),
            self._paired(latent.shape[0]),
        )

    @contextmanager
    def block(self, x: Tensor) -> Iterator[DenoiserCall]:
        """The call that a block with these tokens belongs to, while the block runs.

        Gradient checkpointing runs blocks in the backward, outside their denoiser.
        """
        compiling = torch.compiler.is_compiling()
        call = self.current()
        # reentrant checkpointing runs the first forward without gradients
        if call is not None and not compiling and (torch.is_grad_enabled() or x.requires_grad):
            self.memory.keep(x, call)
        known = None if call is not None or compiling or not in_backward() else self.memory.find(x)
        if known is None:
            yield self.running()
            return
        again = known.again()
        before = self.begin(again)
        try:
            yield again
        finally:
            self.end(before)

    def running(self) -> DenoiserCall:
        """The call that this thread (or the tracing compiler) is running."""
        call = self.current()
        if call is None:
            raise TurboError(
                "a patched module ran outside its denoiser, so the image's height and width are "
                "unknown: run the denoiser, or turbovlm.remove(model) first"
            )
        return call

    def fold(self, site: ModuleSite, module: nn.Module, x: Tensor) -> Fold | None:
        """What this module merges of its input ``x`` ``(B, N, C)``; None for nothing."""
        call, tokens = self.running(), x.shape[1]
        call.arrive(site, x)
        ratio = call.ratios[site.kind]
        fold = None
        if ratio and tokens >= self.config.min_tokens:
            fold = self._fold(call, site, module, x, int(tokens * ratio))
        if self.recorders:
            call.moves.append(Move(site.name, site.kind, tokens, fold))
        return fold

    def _fold(
        self, call: DenoiserCall, site: ModuleSite, module: nn.Module, x: Tensor, r: int
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
        fold = self._match(call, module if own else site.attention, x, r, parts, site.block)
        if not own:
            call.shared = site.block, r, fold
        return fold

    def _match(
        self, call: DenoiserCall, attention: nn.Module, x: Tensor, r: int, parts: Sets, block: int
    ) -> Fold:
        came = x if call.block is None else call.block
        value, share = None, 1.0
        if self.rule.reads_value:
            value, share = self._value(call, attention, came, x)
        if self.preset.metric == "key":
            metric = similarity(attention, call.halves(x))
        else:
            metric = call.halves(came)
        if self.preset.metric == "sketch":
            metric = sketch(metric, call.directions(metric))
        # a UNet's tokens are channels first: as rows, everything below is several times as fast,
        # and a single sample is turned by a faster kernel as a matrix
        batch, tokens, width = metric.shape
        metric = metric.reshape(batch * tokens, width).contiguous().view(batch, tokens, width)
        rule = replace(self.rule, block=block, share=share)
        fold = fold_tokens(unit_rows(metric), value, r, parts, rule, self.preset.restore)
        return fold.repeat(2 if call.paired else 1)

    def _sets(self, call: DenoiserCall, tokens: int, block: int, device: torch.device) -> Sets:
        """Sources and destinations among the tokens of this level."""
        if self.preset.destinations == "bipartite":
            return EvenOdd(tokens)
        grid, cell = call.level(tokens), self.config.cell
        seed = None if call.seed is None else call.seed + block * 7919
        return grid_sets(grid, (min(cell[0], grid[0]), min(cell[1], grid[1])), seed, device)

    def _value(
        self, call: DenoiserCall, attention: nn.Module, came: Tensor, x: Tensor
    ) -> tuple[Tensor, float]:
        """A, and the share of the default weight that it has.

        Under guidance it is what the prompt changed in the tokens that ``came`` into the block;
        without, or where the paper's way is asked for, attention received by what the module
        reads, ``x``.
        """
        if self.config.plan == "block" and call.paired:
            first, second = came.chunk(2)
            return changed(first, second), 1.0
        text = None if call.text is None else call.halves(call.text)
        return received(attention, call.halves(x), text), ATTENDED_WEIGHT

    def _paired(self, batch: int) -> bool:
        told = self.config.guidance
        if told is None:
            run = self._run()
            return run is not None and run.guided(batch)
        if told and batch % 2:
            raise UnsupportedInput(
                f"guidance=True, but {batch} samples are not two halves: give the denoiser the "
                "batch without the prompt and the batch with it in one, or leave guidance out"
            )
        return told

    def _grid(self, root: nn.Module, given: Mapping[str, Any]) -> tuple[int, int]:
        latent, side = given[self.row.latent], self.row.patch_of(root)
        if self.row.ids is None:
            return latent.shape[-2] // side, latent.shape[-1] // side
        return self._grid_of(given[self.row.ids])

    def _grid_of(self, ids: Tensor) -> tuple[int, int]:
        """Read once for all steps: an accelerator would have to wait in every one."""
        fixed = not (ids.is_inference() or torch.compiler.is_compiling())
        kept = self.grids.find(ids) if fixed else None
        if kept is not None and kept[0] == ids._version:
            return kept[1]
        rows = ids[0] if ids.dim() == 3 else ids
        grid = int(rows[:, 1].max()) + 1, int(rows[:, 2].max()) + 1
        if fixed:
            self.grids.keep(ids, (ids._version, grid))
        return grid

    def _ratios(self, time: Any) -> dict[str, float]:
        ratio, config = self.config.ratio, self.config
        if isinstance(ratio, tuple):
            past = 1 - _host_number(time) / self.row.clock
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

    def _seed(self, time: Any, device: torch.device) -> Tensor | None:
        if self.config.seed is None or self.preset.destinations == "bipartite":
            return None
        if isinstance(time, Tensor) and time.device == device:
            clock = time.flatten()[:1].sum().float()  # not every accelerator has fp64
        else:
            # filled, not copied: a copy from the host would wait
            clock = torch.full((), _host_number(time), dtype=torch.float32, device=device)
        return (clock * (1000 / self.row.clock)).long() + self.config.seed * 104729 % 2**62


def _host_number(time: Any) -> float:
    """The time step as a number; reading it from an accelerator waits for all that runs there.

    Raises:
        UnsupportedInput: while a CUDA graph is captured.
    """
    if not isinstance(time, Tensor):
        return float(time)
    if time.is_cuda and torch.cuda.is_current_stream_capturing():
        raise UnsupportedInput(
            "a ratio for each part of the denoising reads the time step, which the capture of a "
            "graph cannot: capture each part with one ratio"
        )
    return float(time.flatten()[0])
