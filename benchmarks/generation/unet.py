"""One UNet with random weights, and its sides: unmerged, the limit, and the candidates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from methods import TOMESD, Candidate, peer
from torch import Tensor, nn

from turbovlm.config import MergeRestore
from turbovlm.maths.fold import Fold
from turbovlm.measure import flops
from turbovlm.plug.denoiser.state import DenoiserPatch
from turbovlm_lab import painter
from turbovlm_workbench.compare.variants import share_weights
from turbovlm_workbench.paper.models import stable_diffusion

TEXT = 77
KINDS = {"attn1": "self_attention", "attn2": "cross_attention", "ff": "feed_forward"}


def tiny() -> nn.Module:
    """The four levels of Stable Diffusion 1.5, narrow."""
    return UNet2DConditionModel(
        sample_size=16,
        cross_attention_dim=32,
        attention_head_dim=4,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
    )


@dataclass(frozen=True)
class Shape:
    """A UNet, and how many pixels of a picture one of its latents is wide."""

    build: Callable[[], nn.Module]
    scale: int = 8


SHAPES = {
    "sd15": Shape(stable_diffusion),
    "tiny": Shape(tiny),
    "painter": Shape(lambda: painter.build_painter().unet, 2),
}


@dataclass(frozen=True)
class Step:
    """One denoising step with classifier-free guidance: the same latents twice, two texts."""

    latent: Tensor
    time: Tensor
    text: Tensor

    @classmethod
    def of(cls, model: Any, side: int, images: int) -> Step:
        """The step of a UNet on ``side x side`` latents, on its device and in its dtype."""
        noise = torch.Generator().manual_seed(0)
        latent = torch.randn(images, model.config.in_channels, side, side, generator=noise)
        text = torch.randn(2 * images, TEXT, model.config.cross_attention_dim, generator=noise)
        place = {"device": model.device, "dtype": model.dtype}
        time = torch.tensor(500, device=model.device)
        return cls(latent.repeat(2, 1, 1, 1).to(**place), time, text.to(**place))

    @property
    def tokens(self) -> int:
        """Of the first level."""
        return self.latent.shape[-2] * self.latent.shape[-1]

    def run(self, model: nn.Module) -> Tensor:
        """The predicted noise."""
        with torch.no_grad():
            return model(self.latent, self.time, self.text, return_dict=False)[0]


def limit(model: nn.Module, config: MergeRestore, copy: bool) -> nn.Module:
    """A twin that slices tokens off before each module and pads with zeros after it.

    Args:
        model: stays as it is; the twin shares its weights.
        config: how many, in which modules.
        copy: whether the kept tokens are made contiguous, or stay a strided view.
    """
    twin = share_weights(model)
    for _, kind, module in modules(twin):
        ratio = getattr(config, kind)
        ratio = config.ratio if ratio is None else ratio
        assert isinstance(ratio, int | float)  # no schedule here: one step is timed
        if ratio:
            module.forward = _sliced(module.forward, ratio, config.min_tokens, copy)
    return twin


def _sliced(
    forward: Callable[..., Tensor], ratio: float, min_tokens: int, copy: bool
) -> Callable[..., Tensor]:
    @wraps(forward)
    def cut(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        batch, tokens, width = x.shape
        if tokens < min_tokens:
            return forward(x, *args, **kwargs)
        kept = x[:, : tokens - int(ratio * tokens)]
        y = forward(kept.contiguous() if copy else kept, *args, **kwargs)
        whole = y.new_empty(batch, tokens, width)
        whole[:, : y.shape[1]] = y
        whole[:, y.shape[1] :] = 0
        return whole

    return cut


def merged(model: nn.Module, candidate: Candidate, tokens: int) -> nn.Module:
    """A patched twin."""
    twin = share_weights(model)
    candidate.apply(twin, tokens)
    return twin


def modules(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Name, kind and module of all that may be merged."""
    for name, block in model.named_modules():
        if hasattr(block, "attn1") and hasattr(block, "ff"):
            for child, kind in KINDS.items():
                yield f"{name}.{child}", kind, getattr(block, child)


def tokens_seen(model: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, int]:
    """With how many tokens every module really works, in one call: the last layer of each."""
    seen: dict[str, int] = {}

    def note(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[0].shape[1]

    with ExitStack() as hooks:
        for name, kind, module in modules(model):
            inner: Any = module
            last = inner.net[-1] if kind == "feed_forward" else inner.to_out[0]
            hooks.callback(last.register_forward_pre_hook(partial(note, name)).remove)
        run(model)
    return seen


def check(sides: dict[str, nn.Module], step: Step) -> dict[str, float]:
    """That all sides but the unmerged one do the same work, with fused attention.

    Returns:
        GMACs of every side.

    Raises:
        SystemExit: if a module works with other tokens than the limit's, a side does not change
            the output, or attention is not fused.
    """
    expected, whole = tokens_seen(sides["limit"], step.run), step.run(sides["off"])
    counted: dict[str, float] = {}
    for side, model in sides.items():
        outputs: list[Tensor] = []

        def call(one: nn.Module, _: object, kept: list[Tensor] = outputs) -> None:
            kept.append(step.run(one))

        with_flops = flops(model, (), call=call)
        counted[side] = with_flops.gmacs
        if not any("scaled_dot_product" in op for op in with_flops.by_op):
            raise SystemExit(f"{side}: attention is not fused: {', '.join(with_flops.by_op)}")
        if side == "off":
            continue
        if (seen := tokens_seen(model, step.run)) != expected:
            wrong = [f"{n}: {t}, not {expected[n]}" for n, t in seen.items() if t != expected[n]]
            raise SystemExit(f"{side} works with other tokens than the limit: {wrong[0]}")
        if torch.equal(outputs[0], whole):
            raise SystemExit(f"{side} does not change the output")
    return counted


class Stopwatch:
    """Adds up the time of functions while they are wrapped."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self.device, self.clock = device, clock
        self.seconds: dict[str, float] = {}

    def around(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed under ``label``."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = function(*args, **kwargs)
            self.seconds[label] = self.seconds.get(label, 0.0) + self.now() - start
            return result

        return timed

    def now(self) -> float:
        """The clock, once an accelerator is done."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return self.clock()


def shares(
    candidate: Candidate, model: nn.Module, step: Step, *, cpu_clock: bool, calls: int
) -> dict[str, float]:
    """Parts of the time of a patched eager model: match, merge, restore, and nothing else.

    Match is all that leads to a plan: similarity, guide, destinations, choice.
    """
    watch = Stopwatch(step.latent.device, time.process_time if cpu_clock else time.perf_counter)
    step.run(model)
    with _watched_peer(watch) if candidate.method == TOMESD else _watched(watch):
        whole = watch.around("whole", step.run)
        for _ in range(calls):
            whole(model)
    seconds = watch.seconds
    return {part: seconds[part] / seconds["whole"] for part in ("match", "merge", "restore")}


@contextmanager
def _watched(watch: Stopwatch) -> Iterator[None]:
    places = (
        (DenoiserPatch, "fold", "match"),
        (Fold, "merge", "merge"),
        (Fold, "restore", "restore"),
    )
    before = [getattr(owner, name) for owner, name, _ in places]
    try:
        for (owner, name, label), function in zip(places, before, strict=True):
            setattr(owner, name, watch.around(label, function))
        yield
    finally:
        for (owner, name, _), function in zip(places, before, strict=True):
            setattr(owner, name, function)


@contextmanager
def _watched_peer(watch: Stopwatch) -> Iterator[None]:
    maths = peer().merge
    match = maths.bipartite_soft_matching_random2d

    def timed(*args: Any, **kwargs: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        merge, restore = watch.around("match", match)(*args, **kwargs)
        return watch.around("merge", merge), watch.around("restore", restore)

    maths.bipartite_soft_matching_random2d = timed
    try:
        yield
    finally:
        maths.bipartite_soft_matching_random2d = match
