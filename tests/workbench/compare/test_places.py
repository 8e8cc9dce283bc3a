"""Where the tokens of packed encoders lie, against the encoders themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.vision_utils import get_vision_window_index

from tests.workbench import own_size
from turbovlm import Merge, hosts
from turbovlm.plug.encoder.find import find_towers
from turbovlm_workbench.analyze.maps import picture_maps
from turbovlm_workbench.compare.places import packed_order, places
from turbovlm_workbench.tasks.image import ImageTask
from turbovlm_workbench.tasks.registry import load_task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ImageTask[list[str]]:
    return load_task(str(own_size.qwen25(tmp_path_factory.mktemp("place") / "qwen")))


@pytest.mark.parametrize("grid", [(8, 8), (6, 10), (12, 6), (2, 14)])
def test_windows_are_those_of_the_host(grid: tuple[int, int]) -> None:
    sizes = torch.tensor([[1, *grid]])
    index, _ = get_vision_window_index(sizes, 2, 32, 8)
    in_cells = packed_order(grid, 2, None).view(-1, 4)
    assert torch.equal(packed_order(grid, 2, 2), in_cells[index].flatten())
    assert torch.equal(packed_order(grid, 1, None), torch.arange(grid[0] * grid[1]))


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def test_a_patch_is_found_where_it_was_painted(task: ImageTask[list[str]]) -> None:
    """Two pictures in one batch; one patch of the second is painted, and moves one token."""
    first, second = grey(64, 64), grey(48, 80)
    tower = find_towers(task.encoder(task.model), hosts.rows(), hosts.REFUSALS)[0]

    def entering(pictures: list[np.ndarray]) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        handle = tower.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.inference_mode():
            task.encode(task.model, task.pixels([Image.fromarray(p) for p in pictures]))
        handle.remove()
        return seen[0]

    pixels = task.pixels([Image.fromarray(p) for p in (first, second)])
    where = places(tower, lambda: task.encode(task.model, pixels), pixels)
    assert [place.grid for place in where] == [(8, 8), (6, 10)]
    assert [place.first for place in where] == [0, 64]
    plain = entering([first, second])
    for row, column in ((0, 0), (0, 5), (3, 4), (5, 9)):
        painted = second.copy()
        painted[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 250
        moved = (entering([first, painted]) != plain).any(-1).nonzero().flatten().tolist()
        assert len(moved) == 1
        laid = where[1].lay(torch.arange(60) == moved[0] - 64)
        assert laid.nonzero().tolist() == [[row, column]]


def test_maps_of_a_packed_tower(task: ImageTask[list[str]], tmp_path: Path) -> None:
    """Copies merge first: a flat half of a picture, and never over pictures."""
    rng = np.random.default_rng(0)
    half = rng.integers(0, 256, (48, 80, 3), dtype=np.uint8)
    half[:, 32:] = 90
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    images = {"half": Image.fromarray(half), "noise": Image.fromarray(noise)}
    merge = Merge(r=6, method="redundancy")
    found = picture_maps(task, images, {"r": merge})
    assert [f.guide.shape for f in found] == [(6, 10), (8, 8)]
    assert all(f.guide.max() == 1 for f in found)
    assert np.array_equal(found[0].picture, half)
    for one, patches in zip(found, (60, 64), strict=True):
        steps = one.sides["r"]
        assert [step.block for step in steps] == [1, 2, 3]
        assert [step.tokens for step in steps] == [patches - 6 * n for n in (1, 2, 3)]
        assert [len(np.unique(step.owner)) for step in steps] == [s.tokens for s in steps]
    owner = found[0].sides["r"][0].owner
    joined = np.bincount(owner.ravel())[owner] > 1
    assert joined[:, 4:].sum() > 6
    assert not joined[:, :4].any()
    # a picture alone has the same groups as beside others
    alone = picture_maps(task, {"half": images["half"]}, {"r": merge})[0]
    for ours, other in zip(alone.sides["r"], found[0].sides["r"], strict=True):
        one, two = (np.unique(s.owner, return_inverse=True)[1].ravel() for s in (ours, other))
        assert np.array_equal(one, two)
