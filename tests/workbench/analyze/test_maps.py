"""Merge maps of pictures whose right grouping is known."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tests.language.zoo import LLAVA
from turbovlm import Merge, VisualTokens
from turbovlm.errors import ModelError
from turbovlm_workbench.analyze.maps import PictureMaps, kept_maps, merged_early, picture_maps
from turbovlm_workbench.tasks.image import ImageTask
from turbovlm_workbench.tasks.registry import load_task

GROUND = (120, 150, 120)
DATA = Path(os.environ.get("TURBOVLM_DATA", "../shared/data"))
WEIGHTS = DATA / "vit_tiny_augreg" / "vit_tiny_patch16_224.safetensors"


def object_on_ground(side: int = 256) -> Image.Image:
    """A chequered square, no two parts of which are alike to a patch, on a flat background."""
    picture = Image.new("RGB", (side, side), GROUND)
    pen = ImageDraw.Draw(picture)
    first, last, cells = side * 5 // 14, side * 10 // 14, 12
    step = (last - first) / cells
    for i in range(cells):
        for j in range(cells):
            colour = (230, 200, 40) if (i + j) % 2 else (40, 40, 160)
            left, top = first + i * step, first + j * step
            pen.rectangle((left, top, left + step, top + step), fill=colour)
    return picture


def background_of(found: PictureMaps) -> NDArray[np.bool_]:
    """The patches that show nothing but background, bool (h, w)."""
    h, w = found.guide.shape
    height, width = found.picture.shape[:2]
    patches = found.picture.reshape(h, height // h, w, width // w, 3).astype(int)
    return np.abs(patches - GROUND).max((1, 3, 4)) <= 6


def maps_of(task: ImageTask[Any], r: int) -> PictureMaps:
    settings = {"turbo": Merge(r=r), "redundancy": Merge(r=r, method="redundancy")}
    return picture_maps(task, {"square": object_on_ground()}, settings)[0]


def joined(found: PictureMaps, side: str, where: NDArray[np.bool_]) -> list[float]:
    """After each merging block, the share of the patches at ``where`` that are in a group."""
    shares = []
    for step in found.sides[side]:
        owner = step.owner
        shares.append(float((np.bincount(owner.ravel())[owner] > 1)[where].mean()))
    return shares


def test_the_background_is_merged_first_and_the_object_last() -> None:
    found = maps_of(load_task("lab:captioner"), 8)
    ground = background_of(found)
    assert ground.mean() > 0.7
    assert (~ground).sum() > 20
    back, front = joined(found, "turbo", ground), joined(found, "turbo", ~ground)
    assert back[0] > 0
    assert front[0] == 0
    assert all(b > 2 * f for b, f in zip(back, front, strict=True))
    early = merged_early(found.sides["turbo"])
    assert early[ground].mean() > 5 * early[~ground].mean()
    # the guide looks at the object
    assert found.guide[~ground].mean() > found.guide[ground].mean()
    assert found.guide.max() == 1
    assert list(found.words) == ["unmerged", "turbo", "redundancy"]


@pytest.mark.data
@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs TURBOVLM_DATA with vit_tiny_augreg")
def test_real_weights_spare_the_object_that_redundancy_merges() -> None:
    found = maps_of(load_task("timm:vit_tiny_patch16_224", WEIGHTS), 8)
    ground = background_of(found)
    assert (~ground).sum() == 49
    turbo, alone = (joined(found, side, ~ground) for side in ("turbo", "redundancy"))
    assert max(turbo) == 0
    assert min(alone[1:]) > 0.3
    assert joined(found, "turbo", ground)[-1] > 0.8


def test_steps_are_the_merging_blocks_and_groups_shrink() -> None:
    task = load_task("lab:captioner")
    merge = Merge(r=(0, 10, 0, 20, 0, 0, 5, 0))
    found = picture_maps(task, {"a": object_on_ground()}, {"some": merge})[0]
    steps = found.sides["some"]
    assert [step.block for step in steps] == [2, 4, 7]
    patches = steps[0].owner.size
    # groups of patches, and cls is the token beside them
    assert [len(np.unique(s.owner)) for s in steps] == [patches - n for n in (10, 30, 35)]
    assert [step.tokens for step in steps] == [patches + 1 - n for n in (10, 30, 35)]
    assert merged_early(steps).max() <= 1


class Describing(ImageTask[Any]):
    """The smallest task on a vision-language model: ids that it writes."""

    kind = "describing"
    loss = comparisons = None  # type: ignore[assignment]

    def call(self, model: Any, pixels: Any) -> Any:
        prompt = LLAVA.inputs(1) | {"pixel_values": pixels}
        return model.generate(**prompt, max_new_tokens=2, do_sample=False)

    def read(self, raw: Any) -> Any:
        return raw

    def compare(self, reference: Any, output: Any, start: int) -> Any: ...

    def acceptable(self, quality: Any, unmerged: Any) -> Any: ...

    def words(self, output: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in output[:, -2:].tolist()]


@pytest.fixture
def describing() -> Describing:
    from torchvision.transforms.functional import to_tensor

    from turbovlm_workbench.load.loaded import LoadedModel
    from turbovlm_workbench.load.prepare import Prepare

    prepare = Prepare(lambda images: to_tensor(images[0])[None], (0.0,) * 3, (1.0,) * 3)
    return Describing(LoadedModel(LLAVA.build().eval(), prepare, "llava"))


def test_kept_visual_tokens_are_those_of_the_trace(describing: Describing) -> None:
    picture = object_on_ground(48)
    found = kept_maps(describing, {"a": picture}, VisualTokens(keep=9))[0]
    assert found.kept.shape == (6, 6)
    assert found.kept.sum() == 9
    flat = found.kept.ravel()
    owner = found.owner.ravel()
    assert flat[owner].all()  # a kept one stands for each
    assert (owner[flat] == np.flatnonzero(flat)).all()
    assert list(found.words) == ["all tokens", "9 of 36 tokens"]
    assert np.array_equal(found.picture, np.asarray(picture))
    with pytest.raises(ModelError, match="keep fewer"):
        kept_maps(describing, {"a": picture}, VisualTokens(keep=1.0))
