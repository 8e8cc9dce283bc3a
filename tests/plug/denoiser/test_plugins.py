"""Caches, offloading and plug-ins that replace forwards, in both orders with apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.hooks.group_offloading import apply_group_offloading
from diffusers.hooks.pyramid_attention_broadcast import (
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)
from torch import Tensor

import turbovlm
from tests.hosts import denoisers
from tests.plug.denoiser.test_apply import marks
from turbovlm import MergeRestore
from turbovlm.errors import UnsuitableBlock

SOME = MergeRestore(ratio=0.4)
ORDERS = pytest.mark.parametrize("merge_first", [True, False], ids=["apply first", "apply last"])


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def in_order(merge_first: bool, model: Any, plug_in: Callable[[], object]) -> None:
    """Both on one model."""
    if merge_first:
        turbovlm.apply(model, SOME)
    plug_in()
    if not merge_first:
        turbovlm.apply(model, SOME)


@ORDERS
def test_first_block_cache(merge_first: bool) -> None:
    case = denoisers.flux()
    model: Any = case.model
    ran: list[str] = []
    for name, block in model.named_modules():
        if name.count(".") == 1 and "transformer_blocks" in name:
            block.attn.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    with turbovlm.applied(model, SOME):
        merged = case.step()
    in_order(merge_first, model, lambda: model.enable_cache(FirstBlockCacheConfig(1e6)))
    ran.clear()
    with model.cache_context("cond"):
        torch.testing.assert_close(case.step(), merged)  # the first step computes everything
        assert len(set(ran)) == 3
        ran.clear()
        torch.testing.assert_close(case.step(), merged)  # the second one from the cache
        assert set(ran) == {"transformer_blocks.0"}
    turbovlm.remove(model)
    assert marks(model) == []
    model.disable_cache()
    plain = case.step()
    assert not torch.allclose(plain, merged)
    with turbovlm.applied(model, SOME):
        torch.testing.assert_close(case.step(), merged)


def broadcast(model: Any) -> None:
    """Pyramid Attention Broadcast: every second step takes self-attention from the one before."""
    setting = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 900),
        spatial_attention_block_identifiers=("attentions",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(model, setting)


@ORDERS
def test_pyramid_attention_broadcast(merge_first: bool) -> None:
    case = denoisers.unet()
    plain, other = case.step(), denoisers.noise(2, 4, 16, 16, seed=8)
    with turbovlm.applied(case.model, SOME):
        merged, next_merged = case.step(), case.step(latent=other)
    in_order(merge_first, case.model, lambda: broadcast(case.model))
    torch.testing.assert_close(case.step(), merged)
    assert not torch.allclose(case.step(latent=other), next_merged)  # attention of the step before
    turbovlm.remove(case.model)
    for module in case.model.modules():
        if hasattr(module, "_diffusers_hook"):
            module._diffusers_hook.reset_stateful_hooks(recurse=False)
    torch.testing.assert_close(case.step(), plain)
    turbovlm.apply(case.model, SOME)  # once more, under the hooks
    for module in case.model.modules():
        if hasattr(module, "_diffusers_hook"):
            module._diffusers_hook.reset_stateful_hooks(recurse=False)
    torch.testing.assert_close(case.step(), merged)


@ORDERS
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading(kind: str, merge_first: bool) -> None:
    case = denoisers.flux()
    plain = case.step()
    with turbovlm.applied(case.model, SOME):
        merged = case.step()
    cpu = torch.device("cpu")
    more: dict[str, Any] = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    in_order(
        merge_first,
        case.model,
        lambda: apply_group_offloading(
            case.model, cpu, cpu, offload_type=kind, low_cpu_mem_usage=False, **more
        ),
    )
    torch.testing.assert_close(case.step(), merged)
    turbovlm.remove(case.model)
    torch.testing.assert_close(case.step(), plain)
    assert not torch.allclose(merged, plain)


class Replaced:
    """What DeepCache does: forwards are replaced on instances, and put back from a list."""

    def __init__(self, model: Any) -> None:
        self.kept = [(m, m.forward) for m in model.modules() if type(m).__name__ in self.NAMES]
        self.calls = 0
        for module, forward in self.kept:
            module.forward = self._wrapped(forward)

    NAMES = ("UNet2DConditionModel", "Transformer2DModel", "Attention", "FeedForward")

    def _wrapped(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            self.calls += 1
            return forward(*args, **kwargs)

        return run

    def off(self) -> None:
        """As such plug-ins take themselves off."""
        for module, forward in self.kept:
            module.forward = forward


@pytest.mark.parametrize("off_first", [True, False])
def test_a_plug_in_that_replaces_forwards(off_first: bool) -> None:
    case = denoisers.unet()
    plain = case.step()
    turbovlm.apply(case.model, SOME)
    merged = case.step()
    plug_in = Replaced(case.model)
    assert torch.equal(case.step(), merged)
    assert plug_in.calls > 20
    for take_off in (plug_in.off, lambda: turbovlm.remove(case.model))[:: 1 if off_first else -1]:
        take_off()
    assert torch.equal(case.step(), plain)
    assert not torch.allclose(merged, plain)
    turbovlm.apply(case.model, SOME)  # what the plug-in left on the instances does not hinder
    assert torch.equal(case.step(), merged)
    turbovlm.remove(case.model)
    assert torch.equal(case.step(), plain)


def test_a_replaced_forward_is_refused_with_the_order_that_works() -> None:
    case = denoisers.unet()
    plain = case.step()
    plug_in = Replaced(case.model)
    with pytest.raises(UnsuitableBlock, match=r"take that one off, turbovlm\.apply first"):
        turbovlm.apply(case.model, SOME)
    plug_in.off()
    with turbovlm.applied(case.model, SOME):
        assert not torch.allclose(case.step(), plain)
    assert torch.equal(case.step(), plain)
