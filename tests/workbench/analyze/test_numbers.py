"""The numbers of the analysis against loops over pairs, tokens and groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from turbovlm.maths.plan import collapsed, complete
from turbovlm_workbench.analyze.numbers import (
    attention_concentration,
    merge_error,
    token_redundancy,
)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_redundancy_is_the_mean_over_all_pairs() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(3, 9, 5) + 0.5
    counted = torch.ones(3, 9, dtype=torch.bool)
    counted[:, 0] = False  # cls
    counted[1, 6:] = False  # padding
    for row, found in enumerate(token_redundancy(tokens, counted).tolist()):
        kept = [tokens[row, n] for n in range(9) if counted[row, n]]
        pairs = [cosine(a, b) for i, a in enumerate(kept) for j, b in enumerate(kept) if i != j]
        assert found == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_redundancy_of_known_tokens() -> None:
    everyone = torch.ones(1, 4, dtype=torch.bool)
    same = torch.tensor([[[1.0, 2.0]] * 4]) * torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None]
    assert token_redundancy(same, everyone).item() == pytest.approx(1)  # length does not matter
    assert token_redundancy(torch.eye(4)[None], everyone).item() == pytest.approx(0)
    opposite = torch.tensor([[[1.0, 0], [-1, 0], [0, 1], [0, -1]]])
    assert token_redundancy(opposite, everyone).item() == pytest.approx(-1 / 3)
    alone = torch.tensor([[True, False, False, False]])
    assert math.isnan(token_redundancy(same, alone).item())


def test_concentration_is_the_share_of_the_top_quarter() -> None:
    # cls holds 0.5 and does not count; of the other 8 tokens the top 2 hold 0.2 + 0.1 of 0.5
    value = torch.tensor([[0.5, 0.03, 0.2, 0.05, 0.02, 0.04, 0.1, 0.03, 0.03]])
    counted = torch.ones(1, 9, dtype=torch.bool)
    counted[:, 0] = False
    assert attention_concentration(value, counted).item() == pytest.approx(0.3 / 0.5)
    counted[:, 7:] = False  # 6 left: a quarter is 1, of 0.44 together
    assert attention_concentration(value, counted).item() == pytest.approx(0.2 / 0.44)
    flat = torch.full((2, 16), 0.1)
    everyone = torch.ones(2, 16, dtype=torch.bool)
    assert attention_concentration(flat, everyone).tolist() == pytest.approx([0.25, 0.25])
    assert math.isnan(attention_concentration(flat, ~everyone)[0].item())


def test_merge_error_equals_a_loop_over_groups() -> None:
    torch.manual_seed(1)
    tokens = torch.randn(2, 8, 4)
    size = torch.tensor([[1.0, 2, 1, 3, 1, 1, 2, 1], [1, 1, 1, 1, 4, 1, 1, 1]])
    source = torch.tensor([[2, 4, 6], [4, 2, 6]])
    destination = torch.tensor([[1, 1, 7], [3, 5, 5]])
    plan, _ = complete(source, destination, 8)
    for row, found in enumerate(merge_error(tokens, size, plan).tolist()):
        moved = whole = 0.0
        for goal in set(destination[row].tolist()):
            group = [goal]
            group += [
                int(s) for s, d in zip(source[row], destination[row], strict=True) if d == goal
            ]
            mass = sum(size[row, t] for t in group)
            mean = sum(size[row, t] * tokens[row, t] for t in group) / mass
            moved += sum(float(size[row, t] * (tokens[row, t] - mean).norm()) for t in group)
            whole += sum(float(size[row, t] * tokens[row, t].norm()) for t in group)
        assert found == pytest.approx(moved / whole, rel=1e-5)
        assert found > 0.1


def test_merging_copies_has_no_error_and_padding_does_not_count() -> None:
    tokens = torch.tensor([[[9.0, 9], [1, 0], [1, 0], [0, 1], [5, 5]]])
    plan, _ = complete(torch.tensor([[2]]), torch.tensor([[1]]), 5)
    assert merge_error(tokens, None, plan).item() == 0
    # two unit vectors at a right angle: each is sqrt(1/2) from their mean
    plan, _ = complete(torch.tensor([[2]]), torch.tensor([[3]]), 5)
    assert merge_error(tokens, None, plan).item() == pytest.approx(0.5**0.5)
    padded = torch.tensor([[1.0, 1, 1, 1, 0]])
    plan, _ = complete(torch.tensor([[2, 4]]), torch.tensor([[3, 1]]), 5)
    assert merge_error(tokens, padded, plan).item() == pytest.approx(0.5**0.5)
    everything = collapsed(1, 5, 1, tokens.device)
    mean = tokens[0, 1:].mean(0)
    expected = (tokens[0, 1:] - mean).norm(dim=-1).sum() / tokens[0, 1:].norm(dim=-1).sum()
    assert merge_error(tokens, None, everything).item() == pytest.approx(float(expected))
