"""The same noise with and without merging: pictures, operations and the pipeline afterwards."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import turbovlm
from tests.workbench.generation.make import BLUE, RED, SIDE, STEPS, stable_diffusion
from turbovlm.config import MergeRestore
from turbovlm.errors import ConfigError, NotApplied
from turbovlm.measure import flops
from turbovlm_workbench.generation.compare import (
    PicturePlan,
    compare_pictures,
    restore_settings,
    restore_title,
)
from turbovlm_workbench.generation.draw import Drawing, draw_pictures
from turbovlm_workbench.generation.pipeline import load_pipeline


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pipeline(str(stable_diffusion(tmp_path_factory.mktemp("models") / "sd")))


def test_sides_show_what_the_settings_draw(pipe: Any) -> None:
    told: list[tuple[str, int, int]] = []
    merges = [MergeRestore(ratio=0.0), MergeRestore(ratio=0.5)]
    drawing = Drawing(steps=STEPS)
    plan = PicturePlan([RED, BLUE], drawing, seed=4, rounds=3)
    found = compare_pictures(pipe, "small", plan, merges, lambda *step: told.append(step))
    base, none, half = found.sides
    assert [side.name for side in found.sides] == ["unmerged", "turbo 0 %", "turbo 50 %"]
    assert (found.seeds, found.size, found.rounds) == ((4, 5), (SIDE, SIDE), 3)
    for index, prompt in enumerate((RED, BLUE)):
        alone = np.asarray(draw_pictures(pipe, [prompt], [4 + index], drawing)[0])
        assert np.array_equal(alone, np.asarray(base.pictures[index]))
        assert np.array_equal(alone, np.asarray(none.pictures[index]))
        assert not np.array_equal(alone, np.asarray(half.pictures[index])), (
            "merging changed nothing"
        )
    assert (none.difference, none.psnr) == (0.0, None)
    gaps = [
        np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
        for a, b in zip(base.pictures, half.pictures, strict=True)
    ]
    assert half.difference == pytest.approx(np.abs(gaps).mean())
    assert half.psnr == pytest.approx(10 * np.log10(255**2 / np.square(gaps).mean()))
    assert none.gmacs == base.gmacs > half.gmacs
    assert told[0] == ("warming up", 0, 9)
    assert told[-1][1:] == (8, 9)
    assert json.loads(json.dumps(found.to_dict()))["sides"][2]["merge"] == merges[1].to_dict()
    with pytest.raises(NotApplied):
        turbovlm.remove(pipe)
    assert not pipe.unet._forward_pre_hooks


def test_operations_are_those_of_one_step_with_both_halves_of_guidance(pipe: Any) -> None:
    drawing = Drawing(steps=STEPS)
    side = compare_pictures(
        pipe, "small", PicturePlan([RED], drawing, rounds=1), [MergeRestore(ratio=0.3)]
    ).sides
    width = pipe.text_encoder.config.hidden_size
    text = torch.zeros(2, pipe.tokenizer.model_max_length, width)
    inputs = {"sample": torch.zeros(2, 4, 16, 16), "timestep": 1, "encoder_hidden_states": text}
    assert side[0].gmacs == flops(pipe.unet, inputs).gmacs
    with turbovlm.applied(pipe, MergeRestore(ratio=0.3, guidance=True)):
        assert side[1].gmacs == pytest.approx(flops(pipe.unet, inputs).gmacs)


def test_image_to_image(tmp_path: Any) -> None:
    pipe = load_pipeline(str(stable_diffusion(tmp_path / "sd")), image=True)
    drawing = Drawing(steps=6, image=Image.new("RGB", (40, 40), "red"), strength=0.4)
    found = compare_pictures(
        pipe, "small", PicturePlan([RED], drawing, rounds=1), restore_settings([0.5], ["random"])
    )
    assert found.sides[1].name == "random 50 %"
    assert found.sides[1].difference > 0
    assert found.sides[0].pictures[0].size == (SIDE, SIDE)


def test_settings_are_every_combination_once() -> None:
    found = restore_settings([0.1, 0.3, 0.1], ["turbo", "random"])
    assert [restore_title(merge) for merge in found] == [
        "turbo 10 %", "turbo 30 %", "random 10 %", "random 30 %",
    ]  # fmt: skip
    assert restore_title(MergeRestore(ratio=(0.5, 0.0))) == "turbo 50, 0 %"


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "at least one --prompt"),
        ([RED, " "], {}, "at least one --prompt"),
        ([RED], {"rounds": 0}, "--rounds must be at least 1"),
        ([RED], {"seed": -1}, "--seed must be in 0"),
    ],
)
def test_mistakes_are_found_before_drawing(
    prompts: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        PicturePlan(prompts, Drawing(), **options)
