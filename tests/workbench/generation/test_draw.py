"""One way to draw: noise that follows from the seed, options that are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.workbench.generation.make import BLUE, RED, SIDE, STEPS, stable_diffusion
from turbovlm.errors import ConfigError, ModelError
from turbovlm_lab import painter
from turbovlm_workbench.generation.draw import Drawing, draw_pictures, native_size
from turbovlm_workbench.generation.pipeline import load_pipeline


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pipeline(str(stable_diffusion(tmp_path_factory.mktemp("models") / "sd")))


@pytest.fixture(scope="module")
def to_image(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = stable_diffusion(tmp_path_factory.mktemp("models") / "sd")
    return load_pipeline(str(folder), image=True)


def far(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference in levels."""
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


def test_a_picture_follows_from_prompt_and_seed_in_any_batch(pipe: Any) -> None:
    drawing = Drawing(steps=STEPS)
    both = draw_pictures(pipe, [RED, BLUE], [5, 6], drawing)
    assert both[0].size == (SIDE, SIDE)
    alone = draw_pictures(pipe, [BLUE], [6], drawing)[0]
    assert far(alone, both[1]) < 0.1  # a batch may round differently
    assert far(draw_pictures(pipe, [BLUE], [7], drawing)[0], alone) > 5
    assert far(draw_pictures(pipe, [RED], [6], drawing)[0], alone) > 1


def test_size_negative_prompt_and_guidance_reach_the_pipeline(pipe: Any) -> None:
    plain = draw_pictures(pipe, [RED], [0], Drawing(steps=STEPS))[0]
    assert draw_pictures(pipe, [RED], [0], Drawing(steps=STEPS, size=48))[0].size == (48, 48)
    assert far(draw_pictures(pipe, [RED], [0], Drawing(steps=STEPS, negative=BLUE))[0], plain) > 1
    assert far(draw_pictures(pipe, [RED], [0], Drawing(steps=STEPS, guidance=2.0))[0], plain) > 1
    assert far(draw_pictures(pipe, [RED], [0], Drawing(steps=STEPS + 2))[0], plain) > 1


def test_image_to_image_begins_with_the_image_at_the_models_size(to_image: Any) -> None:
    assert native_size(to_image) == SIDE
    dark, light = (Image.new("RGB", (90, 50), (level,) * 3) for level in (0, 255))
    drawn = [
        draw_pictures(to_image, [RED, BLUE], [0, 1], Drawing(steps=6, image=start, strength=0.5))
        for start in (dark, light)
    ]
    assert {picture.size for pictures in drawn for picture in pictures} == {(SIDE, SIDE)}
    assert far(drawn[0][0], drawn[1][0]) > 5
    large = draw_pictures(
        to_image, [RED], [0], Drawing(steps=6, image=dark, strength=0.5, size=48)
    )[0]
    assert large.size == (48, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"guidance": -1.0}, "--guidance must be 0 or more"),
        ({"guidance": float("nan")}, "--guidance must be 0 or more"),
        ({"size": 0}, "--size must be a multiple of 8 pixels"),
        ({"size": 100}, "--size must be a multiple of 8 pixels"),
        ({"strength": 0.5}, "--strength goes with --image"),
        ({"strength": 1.5, "image": True}, "--strength must be above 0 and at most 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    if "image" in options:
        options = {**options, "image": Image.new("RGB", (8, 8))}
    with pytest.raises(ConfigError, match=message):
        Drawing(**options)


def test_an_option_that_the_pipeline_does_not_have_is_named(pipe: Any) -> None:
    class Plain(type(pipe)):
        def __call__(
            self, prompt: list[str], generator: Any, output_type: str, num_inference_steps: int = 2
        ) -> Any:
            raise ValueError("nothing is ever right\nfor me")

    plain = object.__new__(Plain)
    with pytest.raises(ConfigError, match="Plain has no --negative: leave it out"):
        draw_pictures(plain, [RED], [0], Drawing(negative=BLUE))
    with pytest.raises(ModelError, match=r"Plain cannot draw this \(nothing is ever right\)"):
        draw_pictures(plain, [RED], [0], Drawing(steps=3))


def test_the_painter_has_its_own_steps_and_guidance() -> None:
    own = Drawing(negative=BLUE).of("lab:painter")
    assert (own.steps, own.guidance) == (painter.STEPS, painter.GUIDANCE)
    assert own.negative == BLUE
    assert Drawing(steps=3).of("lab:painter").steps == 3
    assert Drawing().of("elsewhere") == Drawing()


def test_values_that_are_no_numbers_make_no_picture(tmp_path: Path) -> None:
    own = load_pipeline(str(stable_diffusion(tmp_path / "sd")))
    with torch.no_grad():
        own.unet.conv_out.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="drew values that are no numbers: check its weights"):
        draw_pictures(own, [RED], [0], Drawing(steps=1))


@pytest.mark.parametrize(
    "options", [{"steps": 1}, {"steps": 5, "strength": 0.1}, {"strength": 0.01}]
)
def test_image_to_image_needs_one_step(to_image: Any, options: dict[str, Any]) -> None:
    start = Image.new("RGB", (SIDE, SIDE))
    with pytest.raises(ConfigError, match="no step at all: use more of either"):
        draw_pictures(to_image, [RED], [0], Drawing(image=start, **options))
    assert draw_pictures(to_image, [RED], [0], Drawing(image=start, steps=1, strength=1.0))
