"""`known_values` and `picture`: hosts that read values run without weights, and cost the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import turbovlm
from tests.language.zoo import CASES, LLAVA, NEXT, QWEN25, Case
from turbovlm.hosts.language import ROWS
from turbovlm.measure import flops
from turbovlm.plug.language.apply import find
from turbovlm_workbench.load.known import known_values
from turbovlm_workbench.load.picture import picture


def counted(outer: Any, given: dict[str, Any]) -> tuple[int, int]:
    """Multiply-adds of the tower, and tokens that come out."""
    lengths: list[int] = []

    def run(model: Any, _: object) -> None:
        with known_values():
            lengths.extend(map(len, model.get_image_features(**given).pooler_output))

    return flops(outer, (), call=run).macs, sum(lengths)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_tower_costs_the_same_without_weights(case: Case) -> None:
    given = case.pixels((1,))
    outer, _ = find(case.build(), ROWS)
    real = counted(outer, given)
    assert real[0] > 0
    assert counted(outer.to("meta"), given) == real


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_picture_runs_on_every_host(case: Case) -> None:
    outer, row = find(case.build().to("meta"), ROWS)
    shown = picture(row, outer.config, 64)
    assert counted(outer, dict(shown.given))[1] > 0


def test_pictures_have_the_size_that_is_asked_for() -> None:
    tokens = {}
    for case, size in ((QWEN25, 64), (QWEN25, 128), (NEXT, 48), (NEXT, 96), (LLAVA, 96)):
        outer, row = find(case.build().to("meta"), ROWS)
        tokens[case.name, size] = counted(outer, dict(picture(row, outer.config, size).given))[1]
    assert tokens["qwen2.5", 64] == (64 // 16) ** 2
    assert tokens["qwen2.5", 128] == (128 // 16) ** 2
    assert tokens["llava", 96] == 36  # it sees its own 48 px
    assert tokens["llava_next", 96] > tokens["llava_next", 48]


def test_values_stay_known_until_they_meet_a_weight() -> None:
    weight = torch.randn(4, 4, device="meta")
    with known_values():
        edges = torch.tensor([0, 2, 5], device="meta")
        assert (edges[1:] - edges[:-1]).tolist() == [2, 3]
        rows = torch.arange(6, device=weight.device).view(3, 2) % 4
        assert rows.max().item() == 3
        mask = torch.tensor([True, False, True, True])
        assert weight[mask].shape == (3, 4)
        assert (weight @ torch.ones(4, 2)).is_meta


def test_what_is_overwritten_with_unknown_values_is_unknown() -> None:
    unknown = torch.randn(2, 3, device="meta")
    with known_values():
        kept = torch.zeros(2, 3, device="meta")
        assert kept.sum().item() == 0
        view = kept[0]
        kept.copy_(unknown)
        for x in (kept, view):
            with pytest.raises((RuntimeError, NotImplementedError)):
                x.sum().item()


def test_a_model_counts_as_before_afterwards() -> None:
    """What turbovlm caches a device is not left with values for the meta device."""
    model = LLAVA.build().to("meta")
    tower = model.get_submodule("model.vision_tower")
    inputs = {"pixel_values": torch.randn(1, 3, 48, 48)}
    with turbovlm.applied(model, turbovlm.Merge(r=4), record=False):
        outer, _ = find(model, ROWS)
        assert counted(outer, inputs)[0] > 0
    with turbovlm.applied(model, turbovlm.Merge(r=4), record=False):
        after = flops(tower, inputs).macs
    assert 0 < after < flops(tower, inputs).macs
