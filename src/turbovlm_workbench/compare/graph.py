"""A call as a CUDA graph: what is left of its time when Python and launches are gone."""

from __future__ import annotations

from collections.abc import Callable

import torch

WARM = 3  # calls before the capture: kernels are tuned and workspaces made


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The same call, recorded once and replayed; nothing in it may wait for the device.

    What the replay returns is written anew by the next one.

    Args:
        run: works on the current CUDA device, on inputs that stay where they are.

    Raises:
        RuntimeError: whatever torch raises where something cannot be captured.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept

    return replay
