"""Choosing tokens: against exact greedy, and what must hold whatever the features are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from turbovlm.maths import leaves, select
from turbovlm.maths.cells import cells
from turbovlm.maths.selectors import SELECTORS, Candidates


def literal_greedy(unit: Tensor, keep: int) -> list[int]:
    """One token after the other, all gains computed anew: ``(n, d)``."""
    similarity = (unit @ unit.T).clamp_min(0).double()
    chosen: list[int] = []
    near = torch.zeros(len(unit), dtype=torch.float64)
    for _ in range(keep):
        gains = [
            -1.0 if j in chosen else float((similarity[:, j] - near).clamp_min(0).sum())
            for j in range(len(unit))
        ]
        chosen.append(max(range(len(unit)), key=gains.__getitem__))
        near = torch.maximum(near, similarity[:, chosen[-1]])
    return chosen


def objective(unit: Tensor, kept: Tensor) -> float:
    """f(S) of the module's text."""
    return float((unit @ unit[kept].T).clamp_min(0).amax(1).sum())


def picture(tokens: int, width: int, seed: int) -> Tensor:
    """Features in a dozen clusters of unequal size: objects and a background."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, width, generator=generator)
    share = torch.rand(12, generator=generator) ** 3
    which = torch.multinomial(share, tokens, True, generator=generator)
    return (centres[which] + 0.5 * torch.randn(tokens, width, generator=generator))[None]


def chosen(x: Tensor, keep: int, method: str = "turbo") -> select.Selection:
    unit = select.unit_features(x)
    scores = SELECTORS[method](Candidates(unit, x, None, 0), keep)
    return select.keep_tokens(unit, scores, keep)


@pytest.mark.parametrize("keep", [1, 3, 8])
def test_small_images_are_chosen_by_exact_greedy(keep: int) -> None:
    x = picture(40, 16, 0)
    kept = chosen(x, keep).kept[0]
    assert kept.tolist() == sorted(literal_greedy(select.unit_features(x)[0], keep))


@pytest.mark.parametrize(("tokens", "keep"), [(256, 64), (576, 64), (576, 144), (576, 288)])
@pytest.mark.parametrize("seed", range(3))
def test_leaves_cover_as_well_as_exact_greedy(tokens: int, keep: int, seed: int) -> None:
    x = picture(tokens, 64, seed)
    unit = select.unit_features(x)
    exact = leaves.greedy(unit @ unit.transpose(1, 2), torch.ones(1, tokens), keep)[0]
    ours = objective(unit[0], chosen(x, keep).kept[0])
    random = objective(unit[0], chosen(x, keep, "random").kept[0])
    best = objective(unit[0], exact.topk(keep).indices)
    assert ours >= 0.97 * best
    assert best - ours < 0.5 * (best - random)


def test_images_of_up_to_256_tokens_are_chosen_by_exact_greedy() -> None:
    x = picture(196, 16, 3)
    unit = select.unit_features(x)
    assert chosen(x, 22).kept[0].tolist() == sorted(literal_greedy(unit[0], 22))
    assert leaves._depth(256, 64) == 0 < leaves._depth(257, 64)


def test_greedy_gains_are_those_of_the_definition() -> None:
    # three tokens: the first covers itself and half of the second
    similarity = torch.tensor([[[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    gains = leaves.greedy(similarity, torch.tensor([[2.0, 1.0, 1.0]]), 3)[0]
    assert gains.tolist() == pytest.approx([2 + 0.5, 1 - 0.5, 1.0])


def test_importance_moves_the_choice() -> None:
    x = picture(40, 16, 1)
    unit = select.unit_features(x)
    plain = leaves.leaf_gains(unit, 4, torch.ones(1, 40)).topk(4).indices
    weight = torch.ones(1, 40)
    lonely = int(set(range(40)).difference(plain[0].tolist()).pop())
    weight[0, lonely] = 1000.0
    assert lonely in leaves.leaf_gains(unit, 4, weight).topk(4).indices[0].tolist()


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 120),
    share=st.floats(0.01, 1),
    images=st.integers(1, 3),
    seed=st.integers(0, 9),
    method=st.sampled_from(sorted(SELECTORS)),
)
def test_what_always_holds(tokens: int, share: float, images: int, seed: int, method: str) -> None:
    keep = max(1, round(share * tokens))
    x = torch.cat([picture(tokens, 8, seed + i) for i in range(images)])
    selection = chosen(x, keep, method)
    kept = selection.kept
    assert kept.shape == (images, keep)
    assert bool((kept.diff(dim=1) > 0).all())
    assert 0 <= int(kept.min()) <= int(kept.max()) < tokens
    # kept tokens stand for themselves
    slots = torch.arange(keep).expand(images, -1)
    assert torch.equal(selection.owner.gather(1, kept), slots)
    assert bool(selection.merged.gather(1, kept).all())
    # the owner is the most similar one
    unit = select.unit_features(x)
    for i in range(images):
        similarity = unit[i] @ unit[i, kept[i]].T
        got = similarity.gather(1, selection.owner[i].unsqueeze(1))[:, 0]
        torch.testing.assert_close(got, similarity.amax(1))
    again = chosen(x, keep, method)
    assert torch.equal(again.kept, kept)
    # every image is chosen on its own
    if method != "random":
        assert torch.equal(chosen(x[:1], keep, method).kept, kept[:1])
    folded = selection.fold(x)
    for i in range(images):
        for slot in range(keep):
            members = (selection.owner[i] == slot) & selection.merged[i]
            torch.testing.assert_close(folded[i, slot], x[i, members].mean(0))


def test_what_nothing_is_merged_into_comes_out_bit_for_bit() -> None:
    x = torch.randn(2, 30, 16).bfloat16()
    unit = select.unit_features(x)
    scores = torch.rand(2, 30)
    selection = select.keep_tokens(unit, scores, 10, merge=False)
    rows = selection.kept.unsqueeze(2).expand(-1, -1, 16)
    assert torch.equal(selection.fold(x), x.gather(1, rows))


def test_no_cell_is_left_empty() -> None:
    side = 12
    place = torch.stack(
        torch.meshgrid(
            torch.zeros(1), (torch.arange(side) + 0.5) / side, (torch.arange(side) + 0.5) / side,
            indexing="ij",
        ),
        -1,
    ).reshape(-1, 3)  # fmt: skip
    cell = cells(place, 36)
    assert cell is not None
    assert int(cell.max()) == 8
    # all the structure is in one corner
    x = torch.ones(1, side * side, 16) + 0.01 * picture(side * side, 16, 0)
    corner = (place[:, 1] < 0.4) & (place[:, 2] < 0.4)
    x[0, corner] = picture(int(corner.sum()), 16, 2)[0]
    unit = select.unit_features(x)
    scores = leaves.leaf_gains(unit, 20, torch.ones(1, side * side))
    free = select.keep_tokens(unit, scores, 20).kept[0]
    floor = select.keep_tokens(unit, scores, 20, cell=cell).kept[0]
    assert len(cell[free].unique()) < 9
    assert len(cell[floor].unique()) == 9
    assert len(floor) == 20


def test_frames_beyond_the_count_have_no_cells() -> None:
    place = torch.tensor([[float(f), 0.5, 0.5] for f in range(5)])
    assert cells(place, 4) is None
    assert cells(place, 5) is not None


def test_coverage_finds_the_fewest_tokens_of_its_order() -> None:
    x = torch.cat([picture(60, 16, 0), torch.ones(1, 60, 16)])
    unit = select.unit_features(x)
    gains = leaves.leaf_gains(unit, 60, torch.ones(2, 60))
    count = select.enough(unit, gains, 0.9)
    assert int(count[1]) == 1
    order = gains[0].sort(descending=True, stable=True).indices
    reached = [objective(unit[0], order[:k]) / 60 for k in range(1, 61)]
    assert int(count[0]) == next(k for k, r in enumerate(reached, 1) if r >= 0.9 - 1e-5)
    assert 1 < int(count[0]) < 60
    assert select.enough(unit, gains, 1.0).tolist() == [60, 1]


def test_wide_features_are_compared_by_a_sketch() -> None:
    x = torch.randn(1, 200, 2048, generator=torch.Generator().manual_seed(0))
    exact = torch.nn.functional.normalize(x, dim=2)
    sketch = select.unit_features(x)
    assert sketch.shape == (1, 200, select.SKETCH)
    error = sketch @ sketch.transpose(1, 2) - exact @ exact.transpose(1, 2)
    assert 0.5 / select.SKETCH**0.5 < float(error.std()) < 1.2 / select.SKETCH**0.5
    narrow = picture(20, 2 * select.SKETCH, 0)
    torch.testing.assert_close(
        select.unit_features(narrow), torch.nn.functional.normalize(narrow, dim=2)
    )


def test_divprune_takes_the_farthest_each_time() -> None:
    angle = torch.tensor([0.0, 0.1, 1.5, 3.0, 3.1])
    x = torch.stack([angle.cos(), angle.sin()], 1)[None]
    kept = chosen(x, 3, "divprune").kept[0].tolist()
    assert kept == [0, 2, 4]


def test_uniform_spreads_over_the_picture() -> None:
    place = torch.tensor([[0.0, y / 4, x / 4] for y in range(4) for x in range(4)])
    unit = torch.ones(1, 16, 4) / 2
    scores = SELECTORS["uniform"](Candidates(unit, unit, place, 0), 4)
    kept = scores[0].topk(4).indices
    assert sorted(kept.tolist()) == [0, 3, 12, 15]
