"""Destinations, matching, merging and restoring for generation: worked cases and properties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.reference import generation as literal
from turbovlm.config import MergeRestore
from turbovlm.maths.fold import Fold, fold_tokens
from turbovlm.maths.match import unit_rows
from turbovlm.maths.sets import EvenOdd, Sets, grid_sets
from turbovlm.maths.sketch import sketch

CPU = torch.device("cpu")


def sets(grid: tuple[int, int], config: MergeRestore, seed: Tensor | None) -> Sets:
    if config.preset.destinations == "bipartite":
        return EvenOdd(grid[0] * grid[1])
    return grid_sets(grid, config.cell, seed, CPU)


def positions(parts: Sets) -> tuple[list[int], list[int]]:
    """All sources and all destinations."""
    every = torch.arange(parts.source_count), torch.arange(parts.destination_count)
    return (
        parts.source_positions(every[0]).tolist(),
        parts.destination_positions(every[1]).tolist(),
    )


def fold_of(
    metric: Tensor, value: Tensor | None, grid: tuple[int, int], config: MergeRestore
) -> Fold:
    r = int(metric.shape[1] * float(config.ratio))  # type: ignore[arg-type]
    return fold_tokens(
        unit_rows(metric),
        value,
        r,
        sets(grid, config, None),
        config.rule,
        restore=config.preset.restore,
    )


def test_the_corners_of_a_grid() -> None:
    # 0 1 2 3     destinations are the corners of the two whole cells, the rest may go:
    # 4 5 6 7     rows beyond the last cell too
    # 8 9 10 11
    parts = sets((3, 4), MergeRestore(ratio=0.3, seed=None), None)
    source, destination = positions(parts)
    assert destination == [0, 2]
    assert sorted(source) == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    split = sets((2, 3), MergeRestore.paper(ratio=0.3), None)
    assert positions(split) == ([0, 2, 4], [1, 3, 5])


@given(
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    cell=st.sampled_from([(2, 2), (1, 2), (3, 2)]),
    seed=st.integers(0, 10**9),
)
@settings(max_examples=60, deadline=None)
def test_drawn_destinations_divide_the_image(
    height: int, width: int, cell: tuple[int, int], seed: int
) -> None:
    if height < cell[0] or width < cell[1]:
        return
    parts = sets((height, width), MergeRestore(ratio=0.1, cell=cell), torch.tensor(seed))
    source, destination = positions(parts)
    both = source + destination
    assert sorted(both) == list(range(height * width))
    cells = [(p // width // cell[0], p % width // cell[1]) for p in destination]
    rows, columns = height // cell[0], width // cell[1]
    assert sorted(cells) == [(a, b) for a in range(rows) for b in range(columns)]


def test_seeds_draw_evenly_and_again_the_same() -> None:
    config = MergeRestore(ratio=0.3)
    every = torch.arange(256)
    drawn = [
        sets((32, 32), config, torch.tensor(seed)).destination_positions(every)
        for seed in range(40)
    ]
    again = sets((32, 32), config, torch.tensor(7)).destination_positions(every)
    assert torch.equal(again, drawn[7])
    corners = torch.stack(drawn)  # which of the four tokens of each cell
    place = corners // 32 % 2 * 2 + corners % 32 % 2
    share = place.flatten().bincount(minlength=4) / place.numel()
    assert (share - 0.25).abs().max() < 0.02
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_a_case_by_hand() -> None:
    # 2 x 4 tokens in two cells; destinations 0 and 2. Token 1 is like 0, token 3 like 2,
    # token 4 half way between, the others like nobody.
    a, b = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    metric = torch.tensor([[a, a, b, b, [0.8, 0.6, 0.0], [0, 0, 1.0], [0, 0, 1.0], [0, 0, 1.0]]])
    config = MergeRestore(ratio=0.375, method="redundancy", seed=None)  # 3 of 8
    fold = fold_of(metric, None, (2, 4), config)
    pairs = zip(fold.plan.source[0].tolist(), fold.plan.destination[0].tolist(), strict=True)
    assert sorted(pairs) == [(1, 0), (3, 2), (4, 0)]
    x = torch.arange(8.0).view(1, 8, 1)
    merged = fold.merge(x)
    assert merged.flatten().tolist() == pytest.approx([(0 + 1 + 4) / 3, (2 + 3) / 2, 5, 6, 7])
    back = fold.restore(merged).flatten().tolist()
    assert back == pytest.approx([5 / 3, 5 / 3, 2.5, 2.5, 5 / 3, 5, 6, 7])


def test_the_semantic_value_keeps_what_matters() -> None:
    metric = torch.tensor([[[1.0, 0], [1, 0], [1, 0], [1, 0]]])  # one cell, all alike
    value = torch.tensor([[0.1, 0.5, 0.1, 0.3]])
    fold = fold_of(metric, value, (2, 2), MergeRestore(ratio=0.5, seed=None))
    assert sorted(fold.plan.source[0].tolist()) == [2, 3]  # 1 receives most attention and stays
    only = fold_of(metric, value, (2, 2), MergeRestore(ratio=0.25, method="semantics", seed=None))
    assert only.plan.source[0].tolist() == [2]
    assert not MergeRestore(ratio=0.5, alpha=0).rule.reads_value


@pytest.mark.parametrize("restore", ["linear", "copy", "weighted"])
@pytest.mark.parametrize("destinations", ["grid", "bipartite"])
@pytest.mark.parametrize("method", ["turbo", "redundancy", "semantics"])
def test_equal_to_the_oracle(method: str, destinations: str, restore: str) -> None:
    generator = torch.Generator().manual_seed(3)
    metric = torch.randn(2, 42, 5, generator=generator, dtype=torch.float64)
    value = torch.rand(2, 42, generator=generator).softmax(-1)
    x = torch.randn(2, 42, 3, generator=generator, dtype=torch.float64)
    options = {"ratio": 0.4, "method": method}
    ways: dict[str, Any] = {"destinations": destinations, "restore": restore}
    weight = {"alpha": 3.0} if method == "turbo" else {}
    config = MergeRestore.from_dict({**options, "preset": ways, "seed": None, **weight})
    fold = fold_of(metric, value, (6, 7), config)
    merged = fold.merge(x)
    back = fold.restore(merged)
    for sample in range(2):
        slow = literal.groups(
            metric[sample], value[sample], (6, 7), literal.Setting(alpha=3.0, **options, **ways)
        )
        torch.testing.assert_close(merged[sample], slow.merge(x[sample]))
        restored = slow.restore(slow.merge(x[sample]))
        torch.testing.assert_close(back[sample], restored, rtol=1e-5, atol=1e-6)
        assert not torch.equal(back[sample], x[sample])
        if restore == "linear":
            restored = restored + slow.slope(slow.merge(x[sample]))
            sloped = fold.restore(merged, pointwise=True)[sample]
            torch.testing.assert_close(sloped, restored)
            assert not torch.allclose(sloped, back[sample])


@given(
    height=st.integers(2, 8),
    width=st.integers(2, 8),
    ratio=st.floats(0.05, 0.7),
    method=st.sampled_from(["turbo", "redundancy", "semantics", "random"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_mass_is_conserved_and_survivors_come_back_as_they_left(
    height: int, width: int, ratio: float, method: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = height * width
    config = MergeRestore.from_dict({"ratio": ratio, "method": method})
    assert config.preset.restore == "linear"
    parts = sets((height, width), config, torch.tensor(seed))
    r = min(int(tokens * ratio), parts.source_count)
    metric = torch.randn(2, tokens, 4, generator=generator)
    value = torch.rand(2, tokens, generator=generator)
    fold = fold_tokens(
        unit_rows(metric), value, r, parts, replace(config.rule, block=1), config.preset.restore
    )
    x = torch.randn(2, tokens, 3, generator=generator, dtype=torch.float64)
    merged = fold.merge(x)
    assert merged.shape == (2, tokens - r, 3)
    size = torch.zeros(2, tokens - r, dtype=torch.float64).scatter_add(
        1, fold.owner, torch.ones(2, tokens, dtype=torch.float64)
    )
    assert (size.sum(1) == tokens).all()
    assert torch.equal(fold.size, size.long())
    torch.testing.assert_close(fold.bias, size.log().float())
    weighted = (size.unsqueeze(-1) * merged).sum(1)  # the shares are kept in fp32
    torch.testing.assert_close(weighted, x.sum(1), rtol=1e-4, atol=1e-5)
    back = fold.restore(merged)
    assert back.shape == x.shape
    torch.testing.assert_close(back.mean(1), x.mean(1), rtol=1e-4, atol=1e-5)
    alone = torch.ones(2, tokens, dtype=torch.bool)
    alone.scatter_(1, fold.plan.source, False).scatter_(1, fold.plan.destination, False)
    assert torch.equal(back[alone], x[alone])
    sloped = fold.restore(merged, pointwise=True)
    torch.testing.assert_close(sloped.mean(1), back.mean(1))  # the term has no mean in any group
    torch.testing.assert_close(sloped[alone], x[alone])


def test_large_outputs_in_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(1, 1024, 4, generator=generator), dim=-1)
    y = x.double() @ torch.randn(4, 3, generator=generator).double() * 4000
    fold = fold_of(x, None, (32, 32), MergeRestore(ratio=0.5))
    merged = fold.merge(y)
    expected = fold.restore(merged, pointwise=True)
    found = fold.restore(merged.half(), pointwise=True)
    assert found.dtype == torch.float16
    known = (fold.merge(x.double()) - fold.merge(x.double()).mean(1)).transpose(1, 2) @ merged
    assert known.abs().max() > torch.finfo(torch.float16).max, "nothing would have overflowed"
    torch.testing.assert_close(found.double(), expected, rtol=5e-3, atol=20)  # of 12000


def test_a_module_that_is_linear_comes_back_as_it_would_have_been() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(2, 256, 6, generator=generator).double(), dim=-1)
    weight = torch.randn(6, 3, generator=generator).double()
    fold = fold_of(x, None, (16, 16), MergeRestore(ratio=0.5, method="redundancy"))
    whole = x @ weight + 4
    merged = fold.merge(x) @ weight + 4
    copied = (fold.restore(merged) - whole).square().mean()
    sloped = (fold.restore(merged, pointwise=True) - whole).square().mean()
    assert sloped < 0.02 * copied  # what is left is the ridge's
    flat = torch.ones(1, 256, 6)
    fold = fold_of(flat, None, (16, 16), MergeRestore(ratio=0.5))  # no direction at all
    torch.testing.assert_close(fold.restore(fold.merge(flat), pointwise=True), flat)


def test_a_sketch_keeps_who_is_near_whom() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(1, 50, 640, generator=generator)
    narrow = sketch(wide)
    assert narrow.shape == (1, 50, 64)
    assert torch.equal(sketch(wide), narrow)
    ratio = torch.pdist(narrow[0]) / (8 * torch.pdist(wide[0]))
    assert 0.6 < ratio.min() < ratio.max() < 1.5
    assert abs(ratio.mean() - 1) < 0.05
    assert sketch(wide[..., :64]) is not narrow
    assert torch.equal(sketch(wide[..., :64]), wide[..., :64])
    near = wide + 0.05 * torch.randn(1, 50, 640, generator=generator)
    both = torch.cat([sketch(wide), sketch(near)], 1)[0]
    cosine = torch.nn.functional.cosine_similarity(both[:50, None], both[None, 50:], dim=-1)
    assert cosine.argmax(1).tolist() == list(range(50))


def test_tiles_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = torch.randn(1, 64, 6, generator=torch.Generator().manual_seed(0))
    for restore in ("copy", "weighted"):
        config = MergeRestore.from_dict(
            {"ratio": 0.5, "method": "redundancy", "preset": {"restore": restore}}
        )
        whole = fold_of(metric, None, (8, 8), config)
        monkeypatch.setattr("turbovlm.maths.match.TILE_SOURCES", 8)
        monkeypatch.setattr("turbovlm.maths.match.TILE_ROWS", 5)
        tiled = fold_of(metric, None, (8, 8), config)
        assert torch.equal(whole.owner, tiled.owner)
        monkeypatch.undo()


def test_a_single_destination_is_its_own_second() -> None:
    config = MergeRestore.from_dict(
        {"ratio": 0.5, "cell": (2, 3), "seed": None, "preset": {"restore": "weighted"}}
    )
    metric = torch.tensor([[[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [0.8, 0.2], [0.7, 0.3]]])
    fold = fold_of(metric, torch.full((1, 6), 1 / 6), (2, 3), config)
    back = fold.restore(torch.arange(3.0).view(1, 3, 1)).flatten()
    # tokens 1, 4 and 5 are most like token 0, the only destination
    assert back.tolist() == [0, 0, 1, 2, 0, 0]
