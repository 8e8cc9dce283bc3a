"""Counting a model by its name: settings, tokens, and the split into parts."""

from __future__ import annotations

import pytest

from tests.workbench import build
from tests.workbench.metrics import formulas
from turbovlm.config import Merge
from turbovlm.errors import ConfigError, ModelError, UnknownArchitecture
from turbovlm_workbench.compare.operations import PARTS, REST, Operations, count_model
from turbovlm_workbench.compare.variants import merge_settings
from turbovlm_workbench.report.operations import operations_notes

pytest.importorskip("timm")
pytest.importorskip("torchvision")

BASE, TINY = "timm:vit_base_patch16_224", f"timm:{build.TINY}"


def counted(name: str, *rs: int, size: int | None = None, methods: tuple[str, ...] = ("turbo",)):
    return count_model(name, merge_settings(rs, methods), lambda *_: None, size=size)


@pytest.fixture(scope="module")
def base() -> Operations:
    return counted(BASE, 8, 13, 16)


def test_settings_cost_what_the_formula_says(base: Operations) -> None:
    assert base.what == "VisionTransformer: one image of 224 px"
    assert [cost.name for cost in base.costs] == [
        "unmerged", "turbo r=8", "turbo r=13", "turbo r=16",
    ]  # fmt: skip
    assert [cost.tokens for cost in base.costs] == [197, 101, 41, 11]
    for cost in base.costs:
        r = cost.config.r if cost.config else 0
        assert isinstance(r, int)
        assert cost.gflops == pytest.approx(formulas.tower("B", 224, r, 1000), rel=1e-6)
        assert cost.ideal == pytest.approx(base.costs[0].gflops / cost.gflops)


def test_parts_add_up_and_are_what_they_are_called(base: Operations) -> None:
    for cost in base.costs:
        assert sum(cost.parts.values()) == pytest.approx(cost.gflops)
        assert list(cost.parts) == list(base.costs[0].parts)
    parts, tokens, width = base.costs[0].parts, 197, 768
    each = {
        "blocks.*.mlp.fc1": tokens * width * 4 * width,
        "blocks.*.mlp.fc2": tokens * width * 4 * width,
        "blocks.*.attn.qkv": tokens * 3 * width**2,
        "blocks.*.attn.proj": tokens * width**2,
        "blocks.*.attn, own": formulas.attention(tokens, tokens, width),
    }
    for part, macs in each.items():
        assert parts[part] == pytest.approx(12 * macs / 1e9)
    assert parts["patch_embed.proj"] == pytest.approx(196 * 768 * 768 / 1e9)
    assert list(parts) == [*each, "patch_embed.proj", REST]


def test_numbered_siblings_are_one_part() -> None:
    parts = counted("torchvision:vit_b_16", 8, size=64).costs[0].parts
    assert any(part.startswith("encoder.layers.encoder_layer_*.mlp") for part in parts)
    assert len(parts) <= PARTS + 1


def test_methods_differ_by_name_and_merge_alike() -> None:
    costs = counted(TINY, 8, methods=("turbo", "redundancy", "random")).costs
    assert [cost.name for cost in costs[1:]] == ["turbo r=8", "redundancy r=8", "random r=8"]
    assert {cost.tokens for cost in costs[1:]} == {53}


def test_a_speedup_is_what_the_operations_of_the_blocks_allow(base: Operations) -> None:
    merges = merge_settings([], ["turbo"], speedups=[1.2, 1.8])
    found = count_model(BASE, merges, lambda *_: None)
    assert [cost.name for cost in found.costs[1:]] == ["turbo speedup=1.2", "turbo speedup=1.8"]
    for cost, asked in zip(found.costs[1:], (1.2, 1.8), strict=True):
        assert cost.r is not None
        assert sum(cost.r) == 197 - (cost.tokens or 0)
        assert sum(map(bool, cost.r)) == 6
        assert cost.ideal == pytest.approx(asked, rel=0.02)  # the patches are embedded as before
    assert base.costs[1].r == (8,) * 12
    note = "turbo speedup=1.2: r="
    assert [line.startswith(note) for line in operations_notes(found)] == [False, True, False]
    with pytest.raises(ConfigError, match="speedup=99 is out of reach"):
        count_model(TINY, [Merge(speedup=99)], lambda *_: None)


def test_size() -> None:
    costs = counted(BASE, 45, size=384).costs
    assert costs[0].tokens == 577
    assert costs[1].gflops == pytest.approx(formulas.tower("B", 384, 45, 1000), rel=1e-6)


def test_a_model_that_cannot_be_merged_is_counted_unmerged_alone() -> None:
    resnet = counted("timm:resnet18", 0)
    assert [cost.name for cost in resnet.costs] == ["unmerged"]
    assert resnet.costs[0].tokens is None
    with pytest.raises(UnknownArchitecture):
        counted("timm:resnet18", 8)


def test_r_beyond_the_bipartite_limit() -> None:
    assert counted(TINY, 50).costs[1].tokens == 3
    with pytest.raises(ConfigError, match=r"r=51 does not fit .* 50 of 101: give a smaller --r"):
        counted(TINY, 8, 51)


def test_progress_and_json() -> None:
    told: list[tuple[str, int, int]] = []
    result = count_model(TINY, [Merge(r=2), Merge(r=4)], lambda *news: told.append(news))
    assert told == [(f"building {TINY}", 0, 3), ("turbo r=2", 1, 3), ("turbo r=4", 2, 3)]
    data = result.to_dict()
    assert data["model"] == TINY
    assert [cost["config"] for cost in data["costs"]] == [
        None,
        {"kind": "merge", "r": 2},
        {"kind": "merge", "r": 4},
    ]


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ModelError, match="did you mean"):
        counted("timm:vit_base_patch16_22", 8)
