"""The function mode alone, on attention calls as hosts make them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from turbovlm.plug.attention import Attention, Guide, Look


@pytest.mark.parametrize("guide", ["cls", "mean"])
def test_grouped_keys_give_what_repeated_keys_give(guide: Guide) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 9, 8, generator=generator)
    key, value = (torch.randn(2, 2, 9, 8, generator=generator) for _ in range(2))
    bias = torch.rand(2, 9, generator=generator)
    with Attention(bias, Look(guide=guide)) as grouped:
        out = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    all_keys, all_values = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    with Attention(bias, Look(guide=guide)) as full:
        expected = F.scaled_dot_product_attention(query, all_keys, all_values)
    torch.testing.assert_close(out, expected)
    assert grouped.value is not None
    assert full.value is not None
    torch.testing.assert_close(grouped.value, full.value)
    assert grouped.value.std() > 1e-3  # not all equal
    assert grouped.metric is not None
    torch.testing.assert_close(grouped.metric, full.metric)


def test_only_the_first_attention_is_watched() -> None:
    """Cross-attention comes second: its keys are not the tokens', and log size is not theirs."""
    generator = torch.Generator().manual_seed(0)
    x, image = (torch.randn(1, 2, 6, 8, generator=generator) for _ in range(2))
    plain = F.scaled_dot_product_attention(x, image, image)
    with Attention(torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0, 0.0]]), Look(guide="cls")) as tap:
        first = F.scaled_dot_product_attention(x, x, x)
        metric = tap.metric
        second = F.scaled_dot_product_attention(x, image, image)
    assert torch.equal(second, plain)
    assert tap.metric is metric
    assert tap.calls == 1
    assert not torch.allclose(first, F.scaled_dot_product_attention(x, x, x))


@pytest.mark.parametrize("fused", [True, False])
def test_padding_has_no_part_in_the_mean_query(fused: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 7, 8, generator=generator) for _ in range(3))
    real = torch.tensor([[True] * 5 + [False] * 2])
    bias = torch.where(real, 0.0, -1e4)

    def seen(query: torch.Tensor) -> torch.Tensor:
        with Attention(bias, Look(guide="mean", real=real)) as tap:
            if fused:
                F.scaled_dot_product_attention(query, key, value)
            else:
                (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
        assert tap.value is not None
        return tap.value

    junk = query.clone()
    junk[:, :, 5:] = 50.0
    torch.testing.assert_close(seen(junk), seen(query))
    # by hand: the mean of the five real queries
    mean = query[:, :, :5].mean(2, keepdim=True)
    expected = (mean @ key[:, :, :5].transpose(-1, -2) / 8**0.5).softmax(-1).mean((1, 2))
    torch.testing.assert_close(seen(query)[:, :5], expected)
    assert seen(query)[:, 5:].sum() == 0
