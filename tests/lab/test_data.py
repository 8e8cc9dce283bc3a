"""Training samples: tokens as the processor writes them, patches as the image shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from turbovlm_lab.data import PATCH, PATCHES, TARGETS, SceneDataset, collate, patch_targets, pixels
from turbovlm_lab.scenes import COLOURS, SHAPES, SIDE, SIZES, Object, scene, seed_of_split

pytest.importorskip("transformers")


def test_samples_equal_what_the_processor_makes() -> None:
    from turbovlm_lab.captioner import build_caption_processor

    processor: Any = build_caption_processor()
    drawn = [scene(seed_of_split("train", index)) for index in range(4)]
    batch = collate([SceneDataset("train", 4)[index] for index in range(4)])
    made = processor(
        images=[item.image for item in drawn],
        text=[item.caption for item in drawn],
        return_tensors="pt",
        padding="max_length",
        max_length=batch.tokens.shape[1],
    )
    torch.testing.assert_close(batch.tokens, made["input_ids"])
    torch.testing.assert_close(pixels(batch.images), made["pixel_values"])


def test_patches_name_the_object_that_covers_them() -> None:
    side = SIDE // PATCH
    # Exactly the patches of rows 5 to 8, columns 0 to 3.
    item = Object("square", "cyan", "large", 1, 0, left=0, top=5 * PATCH, side=4 * PATCH)
    targets = patch_targets([item]).reshape(side, side, len(TARGETS))
    shown = np.zeros((side, side), dtype=bool)
    shown[5:9, 0:4] = True
    np.testing.assert_array_equal(targets[..., 0] == 1, shown)
    classes = (1, SIZES.index("large"), tuple(COLOURS).index("cyan"), SHAPES.index("square"), 3)
    assert (targets[shown] == classes).all()
    assert (targets[~shown] == 0).all()


def test_every_object_owns_a_patch() -> None:
    for index in range(50):
        objects = scene(seed_of_split("train", index)).objects
        targets = patch_targets(objects)
        assert targets.shape == (PATCHES, len(TARGETS))
        assert set(targets[:, 0]) == set(range(len(objects) + 1))


def test_scenes_start_where_told_and_end() -> None:
    later = SceneDataset("train", 2, start=5)
    np.testing.assert_array_equal(later[1][0], scene(seed_of_split("train", 6)).image)
    with pytest.raises(IndexError):
        later[2]
    assert len(later) == 2
