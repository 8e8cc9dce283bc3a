"""The inverse of ridge systems without a solver, against the solver."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from turbovlm.maths import ridge
from turbovlm.maths.ridge import ridge_inverse

SHARE = 0.1  # the condition is 641 at most: fp32 leaves 641 * 6e-8


def system(width: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Covariances ``(3, d, d)`` of very different spreads and their ridges ``(3, 1)``."""
    generator = torch.Generator().manual_seed(width + rank)
    points = torch.randn(3, rank, width, generator=generator, dtype=torch.float64)
    points *= torch.linspace(-3, 3, width).exp()  # directions differ by a factor of 400
    points *= torch.tensor([1e-4, 1.0, 1e4]).view(3, 1, 1)
    covariance = (points.transpose(1, 2) @ points / rank).to(dtype)
    mean = covariance.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    return covariance, SHARE * mean


@pytest.mark.parametrize("rank", [1, 40, 500])
@pytest.mark.parametrize("width", [1, 8, 64])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-5), (torch.float64, 1e-12)])
def test_products_are_as_good_as_the_solver(
    dtype: torch.dtype, bound: float, width: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    covariance, weight = system(width, rank, dtype)
    exact = ridge_inverse(covariance.double(), weight.double(), SHARE)
    identity = torch.eye(width, dtype=torch.float64)
    whole = covariance.double() + weight.double().unsqueeze(-1) * identity
    torch.testing.assert_close(whole @ exact, identity.expand(3, -1, -1), rtol=0, atol=1e-10)
    monkeypatch.setattr(ridge, "SOLVED", frozenset())
    found = ridge_inverse(covariance, weight, SHARE)
    assert found.dtype == dtype
    error = torch.linalg.matrix_norm(found.double() - exact, 2)
    assert (error / torch.linalg.matrix_norm(exact, 2)).max() < bound


def test_tokens_that_are_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    covariance, weight = torch.zeros(2, 64, 64), torch.full((2, 1), 1e-6 / 64)
    monkeypatch.setattr(ridge, "SOLVED", frozenset())
    found = ridge_inverse(covariance, weight, SHARE)
    torch.testing.assert_close(found, torch.eye(64).expand(2, -1, -1) / weight.unsqueeze(-1))
