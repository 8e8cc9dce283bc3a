"""The table of studies: what the arms mean, and the paper's numbers."""

from __future__ import annotations

import pytest

from turbovlm import Merge
from turbovlm.errors import ConfigError
from turbovlm.maths.schedule import lengths
from turbovlm_workbench.studies.arm import Arm, Shape, arm_setting
from turbovlm_workbench.studies.table import QUARTER, STUDIES, find_studies

BLIP = Shape(12, 577, 1)
SHAPES = (BLIP, Shape(12, 197, 1), Shape(24, 1025, 1), Shape(4, 64, 0), Shape(2, 17, 1))


def test_on_the_papers_encoder_an_arm_is_the_papers_setting() -> None:
    assert arm_setting(Arm("S1", {"alpha": 6.0}), BLIP) == Merge.paper(30, alpha=6.0)
    arms = {arm.label: arm for arm in STUDIES["threshold"].arms}
    found = arm_setting(arms["r as 65 of 576, floor as 70 of 577"], BLIP)
    assert found == Merge.paper(65, min_tokens=70)
    half = next(a for a in STUDIES["ratio"].arms if a.x == pytest.approx(2 / 3))
    assert arm_setting(half, BLIP) == Merge.paper(20)


def test_on_another_encoder_it_removes_the_same_share() -> None:
    # 30 * 12 of 576 patches are 62.5 %: of 196 patches in 12 blocks 10.2 each
    assert arm_setting(Arm("x"), Shape(12, 197, 1)) == Merge.paper(10)
    assert arm_setting(Arm("x"), Shape(24, 577, 1)) == Merge.paper(15)
    # --r 8 for those 30: scale = 8 * 12 / (0.625 * 196)
    assert arm_setting(Arm("x"), Shape(12, 197, 1), 8 * 12 / (0.625 * 196)) == Merge.paper(8)
    late = arm_setting(Arm("x", start=0.5, paper=False), BLIP)
    assert late == Merge(r=(0,) * 6 + (60,) * 6)
    assert lengths(late.schedule, 577, 1, 12)[-1] == lengths(Merge(r=30).schedule, 577, 1, 12)[-1]
    quarter = arm_setting(Arm("x", share=QUARTER), BLIP)
    assert lengths(quarter.schedule, 577, 1, 12)[-1] == 577 - 36 * 12 == 145


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_fits_every_encoder(name: str, shape: Shape) -> None:
    study = STUDIES[name]
    merges = [arm_setting(arm, shape) for arm in study.arms]
    assert all(lengths(m.schedule, shape.tokens, shape.prefix, shape.depth) for m in merges)
    assert len({arm.label for arm in study.arms}) == len(study.arms)
    if shape == BLIP:
        assert len(set(merges)) == len(merges)
    for arm in study.arms:
        assert len(arm.published) in (0, len(study.columns))
        assert (arm.x is None) == (not study.axis)


def test_the_papers_rows() -> None:
    rows = {arm.label[:2]: arm.published for arm in STUDIES["components"].arms if arm.published}
    assert rows == {
        "A1": (34.5, 112.8, 73.6),
        "A2": (35.5, 120.9, 67.9),
        "A3": (36.4, 123.8, 70.3),
        "A4": (38.2, 130.0, 67.6),
        "A5": (38.2, 129.9, 62.8),
    }
    fusion = STUDIES["fusion"].arms
    assert len(fusion) == 26
    assert max(arm.published[1] for arm in fusion) == 130.3
    labels = [arm.label for arm in fusion if arm.published[0] == 38.5]
    assert labels == ["S4, alpha 6, beta 1.1, gamma 5", "S4, alpha 6, beta 1.1, gamma 8"]
    assert [arm.published[2] for arm in STUDIES["threshold"].arms] == [
        107.6, 103.3, 100.8, 113.0, 110.7,
    ]  # fmt: skip
    assert [arm.x for arm in STUDIES["alpha"].arms] == list(range(1, 21))


def test_studies_are_found_by_name() -> None:
    assert [study.name for study in find_studies(["alpha", "ratio", "alpha"])] == ["alpha", "ratio"]
    assert len(find_studies(None)) == len(STUDIES)
    with pytest.raises(ConfigError, match="no study 'beta': there are components, fusion"):
        find_studies(["beta"])
