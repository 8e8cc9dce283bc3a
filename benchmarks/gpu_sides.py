"""What is compared on a GPU: a model unmerged, sliced (the limit), and merged, in each mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from gpu_timing import Run, captured
from sliced import sliced
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import turbovlm
from turbovlm.kernels import available, use_kernels

SIDES = ("off", "limit", "torch", "kernels")
"""``torch`` and ``kernels`` are ours, without and with the Triton kernels."""
SPEEDUPS = (1.4, 1.8)


@dataclass(frozen=True)
class Subject:
    """A model to measure: how to build it, and the constant r that about halves its tokens."""

    name: str
    r: int
    built: dict[str, Any] | None = None

    def build(self, device: torch.device, dtype: torch.dtype) -> VisionTransformer:
        """Random weights, made on the device."""
        torch.manual_seed(0)
        with torch.device(device):
            if self.built is None:
                model = timm.create_model(self.name)
            else:
                model = VisionTransformer(**self.built)
        if not isinstance(model, VisionTransformer):
            raise TypeError(f"{self.name} is no timm VisionTransformer, which alone is sliced here")
        return model.to(device, dtype).eval()


EVA_G = {
    "img_size": 364, "patch_size": 14, "embed_dim": 1408, "depth": 39, "num_heads": 16,
    "mlp_ratio": 6144 / 1408, "num_classes": 0,
}  # fmt: skip
TINY = {
    "img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 2,
    "num_classes": 5,
}  # fmt: skip
SUBJECTS = {
    "vit-b-224": Subject("vit_base_patch16_224", 13),
    "vit-l-384": Subject("vit_large_patch16_384", 23),
    "siglip-so400m-384": Subject("vit_so400m_patch14_siglip_384", 18),
    "dinov2-l-518": Subject("vit_large_patch14_dinov2", 40),
    "eva-g-364": Subject("eva_g_364", 16, EVA_G),
    "tiny": Subject("tiny", 3, TINY),
}


def setting(schedule: str, subject: Subject) -> turbovlm.Merge:
    """The configuration behind the name of a schedule: ``"r"`` or ``"speedup=1.4"``."""
    if schedule == "r":
        return turbovlm.Merge(r=subject.r)
    return turbovlm.Merge(speedup=float(schedule.removeprefix("speedup=")))


class Sides:
    """One model on one device as every side of the comparison, over one set of weights."""

    def __init__(self, subject: Subject, device: torch.device, dtype: torch.dtype) -> None:
        self.subject, self.device, self.dtype = subject, device, dtype
        self.model = subject.build(device, dtype)
        self.open = ExitStack()
        self._models: dict[tuple[str, str], VisionTransformer] = {}
        self._lengths: dict[str, tuple[int, ...]] = {}

    def images(self, batch: int) -> Tensor:
        size = self.model.patch_embed.img_size
        assert size is not None
        return torch.randn(batch, 3, *size, device=self.device, dtype=self.dtype)

    def names(self) -> tuple[str, ...]:
        """The sides that this device can run."""
        return SIDES if available(self.device) else SIDES[:-1]

    def lengths(self, schedule: str) -> tuple[int, ...]:
        """Tokens that leave each block of ours, as a forward recorded them."""
        if schedule not in self._lengths:
            model, x = self.merged(schedule), self.images(1)
            with mode_of("torch"), turbovlm.recording(model) as run:
                call_of(model, x)()
            self._lengths[schedule] = run.trace.tokens
        return self._lengths[schedule]

    def merged(self, schedule: str) -> VisionTransformer:
        config = setting(schedule, self.subject)
        return self._once("ours", schedule, lambda model: turbovlm.apply(model, config))

    def limit(self, schedule: str) -> VisionTransformer:
        lengths = self.lengths(schedule)
        enter = self.open.enter_context
        return self._once("limit", schedule, lambda m: enter(sliced(m, lengths, copy=True)))

    def run(self, side: str, schedule: str, mode: str, x: Tensor) -> Run:
        """One forward of one side, ready to be timed; its first call may compile."""
        model = {"off": lambda: self.model, "limit": lambda: self.limit(schedule)}.get(
            side, lambda: self.merged(schedule)
        )()
        forward: Callable[[Tensor], Tensor] = model
        if mode == "compile":
            backend = "inductor" if self.device.type == "cuda" else "aot_eager"
            forward = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
        plain = call_of(forward, x)

        def run() -> object:
            with mode_of(side):
                return plain()

        if mode != "graph":
            return run
        with torch.no_grad():
            return captured(run)

    def close(self) -> None:
        """Let go of every model."""
        self.open.close()
        self._models.clear()

    def _once(
        self, side: str, schedule: str, change: Callable[[VisionTransformer], object]
    ) -> VisionTransformer:
        key = side, schedule
        if key not in self._models:
            model = twin(self.model)
            change(model)
            self._models[key] = model
        return self._models[key]


def twin(model: VisionTransformer) -> VisionTransformer:
    """The same weights in memory under modules of their own."""
    shared = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def call_of(forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return forward(x)

    return call


@contextmanager
def mode_of(side: str) -> Iterator[None]:
    """The kernels that a side is named after; the others do not ask."""
    use_kernels("triton" if side == "kernels" else "torch")
    try:
        yield
    finally:
        use_kernels("auto")
