"""Information degree: the paper's formulae on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch

import turbovlm
from turbovlm import Merge
from turbovlm.errors import ConfigError
from turbovlm.maths.hashing import random_scores
from turbovlm.maths.paper import fusion_score
from turbovlm.maths.score import (
    SEMANTIC_SCALE,
    Context,
    find_score,
    fitted_weight,
    semantic_value,
    typical_distance,
)

R = torch.tensor([[0.9, 0.5]])
A = torch.tensor([[0.01, 0.002]])


def degree(rule: str = "turbo", block: int = 0, tokens: int = 577, **fields: float) -> list[float]:
    context = Context(tokens, block, **fields)  # type: ignore[arg-type]
    return find_score(rule).function(R, A, context)[0].tolist()


def fused(fusion: str, alpha: float | None = None, block: int = 0, **s4: float) -> list[float]:
    score = fusion_score(fusion, s4.get("beta", 1.0), int(s4.get("gamma", 1)))
    return score.function(R, A, Context(577, block, alpha))[0].tolist()


def test_the_released_factor_is_thirty() -> None:
    assert SEMANTIC_SCALE == 30.0


def test_s1_is_r_minus_alpha_a() -> None:
    # alpha = 6 of the paper's table weighs A by 180 in the released code
    assert degree(alpha=6, tokens=197) == pytest.approx([0.9 - 180 * 0.01, 0.5 - 180 * 0.002])


def test_s2_is_r_over_a_so_the_factor_cannot_change_the_order() -> None:
    assert fused("S2") == pytest.approx([0.9 / 0.3, 0.5 / 0.06])


def test_s3_scales_r() -> None:
    assert fused("S3", alpha=2) == pytest.approx([0.9 * (1 - 0.6), 0.5 * (1 - 0.12)])


@pytest.mark.parametrize(("block", "distance"), [(0, 5), (5, 0), (7, 2)])
def test_s4_weighs_blocks_by_their_distance_to_gamma(block: int, distance: int) -> None:
    weight = 0.9**distance * 6 * 30
    ours = fused("S4", alpha=6, block=block, beta=0.9, gamma=6)
    assert ours == pytest.approx([0.9 - weight * 0.01, 0.5 - weight * 0.002])


def test_s4_with_beta_one_is_s1() -> None:
    assert fused("S4", alpha=6, beta=1.0, gamma=3) == fused("S1", alpha=6)


def test_the_default_gives_the_average_token_the_typical_distance_as_its_weight() -> None:
    typical = math.sqrt(0.1 * 0.5)  # of 1 - R, geometric mean
    assert typical_distance(R).item() == pytest.approx(typical)
    expected = [0.9 - typical * 197 * 0.01, 0.5 - typical * 197 * 0.002]
    assert degree(tokens=197) == pytest.approx(expected)
    # so that A = 1 / N costs the same at every length
    assert fitted_weight(R, Context(577)).item() / 577 == pytest.approx(typical)
    # a guide that says less gets a share of it
    assert fitted_weight(R, Context(577, share=0.2)).item() / 577 == pytest.approx(typical / 5)
    # a given number is taken as it is
    assert degree(alpha=6, tokens=197) == degree(alpha=6, tokens=577)


def test_the_default_fits_each_sample() -> None:
    both = torch.tensor([[0.9, 0.5], [0.99, 0.96]])
    distances = typical_distance(both)
    assert distances.shape == (2, 1)
    assert distances[1].item() == pytest.approx(0.02)
    turbo = find_score("turbo").function
    apart = torch.cat([turbo(r[None], A, Context(9)) for r in both])
    torch.testing.assert_close(turbo(both, A.expand(2, -1), Context(9)), apart)


def test_exact_copies_do_not_end_in_no_number() -> None:
    copies = torch.tensor([[1.0, 1.0000001, 0.0]])
    assert 0 < typical_distance(copies).item() < 1e-3
    found = find_score("turbo").function(copies, A[:, [0, 1, 1]], Context(7))
    assert torch.isfinite(found).all()


def test_padding_does_not_sway_the_default() -> None:
    padded, real = torch.tensor([[0.9, 0.5, 0.0]]), torch.tensor([[True, True, False]])
    context = Context(torch.tensor([[197]]), real=real)
    found = find_score("turbo").function(padded, torch.cat([A, A[:, :1]], 1), context)
    assert found[0, :2].tolist() == pytest.approx(degree(tokens=197))
    assert torch.isfinite(typical_distance(padded, torch.zeros_like(real))).all()


def test_baselines_are_one_term_each() -> None:
    assert degree("semantics") == pytest.approx([-0.01, -0.002])
    assert find_score("redundancy").function(R, None, Context(577)) is R


def test_guide_is_computed_only_where_the_score_uses_it() -> None:
    assert Merge(r=1).rule.reads_value
    assert Merge(r=1, method="semantics").rule.reads_value
    assert Merge.paper(1, fusion="S2").rule.reads_value
    assert not Merge(r=1, alpha=0).rule.reads_value
    assert not Merge(r=1, method="redundancy").rule.reads_value
    assert not Merge(r=1, method="random").rule.reads_value


def test_an_unknown_score_and_a_taken_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="method must be one of turbo, redundancy"):
        find_score("tome")
    with pytest.raises(ConfigError, match="exists already"):
        turbovlm.score("turbo")
    with pytest.raises(ConfigError, match="can read alpha and seed, not beta"):
        turbovlm.score("other", options=("beta",))


def test_semantic_value_averages_the_heads_softmax_not_their_logits() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])  # two heads, two tokens
    expected = torch.tensor([[(0.25 + 0.5) / 2, (0.75 + 0.5) / 2]])
    torch.testing.assert_close(semantic_value(logits), expected)


def test_random_scores_are_seeded_spread_and_without_a_generator() -> None:
    scores = random_scores(4000, 7, 0, torch.device("cpu"))
    assert torch.equal(scores, random_scores(4000, 7, 0, torch.device("cpu")))
    assert not torch.equal(scores, random_scores(4000, 8, 0, torch.device("cpu")))
    assert not torch.equal(scores, random_scores(4000, 7, 1, torch.device("cpu")))
    assert scores.min() >= 0
    assert scores.max() < 1
    counts = torch.histc(scores, bins=10, min=0, max=1)
    assert counts.min() > 330  # uniform: 400 each, standard deviation 19
    assert abs(torch.corrcoef(torch.stack([scores[:-1], scores[1:]]))[0, 1]) < 0.05
