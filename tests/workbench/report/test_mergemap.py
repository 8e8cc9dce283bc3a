from __future__ import annotations

import numpy as np

from turbovlm_workbench.report.mergemap import OUTLINE, merge_map


def test_a_group_has_its_mean_colour_wherever_its_parts_are() -> None:
    # 2 x 2 patches of one pixel; the two corners of one diagonal are one token
    picture = np.array([[[10, 0, 0], [60, 60, 60]], [[90, 90, 90], [30, 8, 0]]], dtype=np.uint8)
    owner = np.array([[5, 1], [2, 5]])
    painted = merge_map(picture, owner)
    assert painted.shape == (448, 448, 3)
    assert painted[100, 100].tolist() == painted[300, 300].tolist() == [20, 4, 0]
    assert painted[100, 300].tolist() == [60, 60, 60]
    assert painted[300, 100].tolist() == [90, 90, 90]


def test_outlines_run_between_groups_only() -> None:
    picture = np.full((4, 4, 3), 200, dtype=np.uint8)
    together = np.array([[0, 0], [1, 1]])
    painted = merge_map(picture, together)
    dark = (painted[..., 0] == round(200 * OUTLINE)).nonzero()
    assert set(dark[0].tolist()) == {223, 224}  # the two rows at the only border
    assert len(dark[0]) == 2 * 448
    assert (merge_map(picture, np.zeros((2, 2), dtype=np.int64)) == 200).all()


def test_patches_need_not_divide_the_picture() -> None:
    picture = np.arange(5 * 10 * 3, dtype=np.uint8).reshape(5, 10, 3)
    painted = merge_map(picture, np.arange(8).reshape(2, 4))
    assert painted.shape == (450, 900, 3)
    assert len(np.unique(painted[::9, ::9].reshape(-1, 3), axis=0)) >= 8


def test_a_large_picture_is_not_enlarged() -> None:
    picture = np.zeros((500, 600, 3), dtype=np.uint8)
    assert merge_map(picture, np.zeros((5, 6), dtype=np.int64)).shape == picture.shape
