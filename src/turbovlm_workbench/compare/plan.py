"""How a bench measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from turbovlm.errors import ConfigError
from turbovlm_workbench.compare.rows import Mode

Progress = Callable[[str, int, int], object]
"""Called with the stage, the steps done and the steps in all."""


@dataclass(frozen=True)
class BenchPlan:
    """How to measure.

    Args:
        batch: images per call; fewer where the folder holds fewer.
        device: where to run.
        dtype: number format of weights and pixels.
        mode: how both sides of every ratio run: as they are, under torch.compile, or as CUDA
            graphs.
        fused: also fuse BLIP's attention, see `turbovlm.fuse_attention`.
        rounds: interleaved rounds to time.
        seconds: begin no further round after so many; two are run in any case.
        beside: also time eager mode, where ``mode`` is another one, and the limit, where the task
            is one forward, see `turbovlm_workbench.compare.limit`.

    Raises:
        ConfigError: for a value out of range, or CUDA graphs on another device.
    """

    batch: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    mode: Mode = "eager"
    fused: bool = False
    rounds: int = 10
    seconds: float = math.inf
    beside: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.mode == "graph" and self.device.type != "cuda":
            raise ConfigError(
                f"CUDA graphs need a CUDA device, and this run is on {self.device.type}: leave "
                "--graph out, or give --device cuda"
            )

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What is timed, ``mode`` last."""
        return ("eager", self.mode) if self.beside and self.mode != "eager" else (self.mode,)
