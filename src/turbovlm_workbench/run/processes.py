"""The processes of a run: one, or those that ``accelerate launch`` started."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch

from turbovlm.errors import require


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Args:
        rank: its number, from 0.
        size: how many there are.
        device: where this one computes.
    """

    rank: int
    size: int
    device: torch.device
    _state: Any = field(default=None, repr=False)

    @property
    def leads(self) -> bool:
        """Whether it is the one that reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every process has come here."""
        if self._state is not None:
            self._state.wait_for_everyone()


def launched() -> bool:
    """Whether ``accelerate launch`` (or torchrun) started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_processes(device: torch.device) -> Processes:
    """The processes of this run; several take one accelerator each, or all the CPU.

    Args:
        device: for a run of one process, and whether several use the CPU.

    Raises:
        MissingExtra: if several were launched and accelerate is not installed.
    """
    if not launched():
        return Processes(0, 1, device)
    accelerate = require("accelerate", "hf")
    state = accelerate.PartialState(cpu=device.type == "cpu")
    return Processes(state.process_index, state.num_processes, state.device, state)
