"""Attention that takes or returns more than tokens of the whole batch, and blocks without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    IPAdapterAttnProcessor2_0,
    PAGCFGIdentitySelfAttnProcessor2_0,
)
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from torch import Tensor

import turbovlm
from tests.hosts import denoisers
from turbovlm import MergeRestore
from turbovlm.errors import UnsupportedInput

SOME = MergeRestore(ratio=0.3)
MODULE = MergeRestore(ratio=0.3, plan="module")


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def with_image_prompt() -> tuple[Any, Callable[..., Tensor]]:
    """A UNet whose cross-attention gets a pair of the text and of images."""
    case = denoisers.unet()
    model: Any = case.model
    model.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(6, 24, 2)])
    model.register_to_config(encoder_hid_dim_type="ip_image_proj")
    processors = dict(model.attn_processors)
    for name in processors:
        width = model.get_submodule(name.removesuffix(".processor")).to_q.in_features
        if ".attn2." in name:
            processors[name] = IPAdapterAttnProcessor2_0(width, 24, num_tokens=(2,))
    model.set_attn_processor(processors)
    denoisers.wild(model)
    image = {"image_embeds": [denoisers.noise(2, 1, 6, seed=5)]}
    return model, lambda run=None: case.step(added_cond_kwargs=image, run=run)


@pytest.mark.parametrize(
    "setting",
    [
        SOME,
        MODULE,
        MergeRestore(ratio=0.3, plan="module", guidance=True),
        MergeRestore(ratio=0.3, self_attention=0.0),
    ],
    ids=str,
)
def test_an_image_prompt_beside_the_text(setting: MergeRestore) -> None:
    model, step = with_image_prompt()
    plain = step()
    with turbovlm.applied(model, setting):
        merged = step()
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(step(compiled), merged)
    assert not torch.allclose(merged, plain)
    assert torch.equal(step(), plain)


def test_the_text_guides_where_an_image_prompt_stands_beside_it() -> None:
    model, step = with_image_prompt()
    case = denoisers.unet()
    case.model.load_state_dict(model.state_dict(), strict=False)
    for processor in model.attn_processors.values():
        if isinstance(processor, IPAdapterAttnProcessor2_0):
            processor.scale[:] = [0.0]  # the image says nothing: as if there were none
    with turbovlm.applied(case.model, MODULE):
        alone = case.step()
    with turbovlm.applied(model, MODULE):
        torch.testing.assert_close(step(), alone)
    assert not torch.allclose(case.step(), alone)


def test_an_image_prompt_of_flux_is_restored() -> None:
    case = denoisers.flux()
    model: Any = case.model
    made = {
        name: FluxIPAdapterAttnProcessor(32, 24, num_tokens=(2,))
        if name.startswith("transformer_blocks")
        else kept
        for name, kept in model.attn_processors.items()
    }
    model.set_attn_processor(made)
    denoisers.wild(model)
    images = [denoisers.noise(2, 2, 24, seed=5), denoisers.noise(2, 2, 24, seed=6)]

    def step(image: Tensor, samples: slice = slice(None)) -> Tensor:
        prompt = {"ip_hidden_states": [image[samples]]}
        latent, text = denoisers.noise(2, 256, 4), denoisers.noise(2, 7, 24, seed=2)
        return case.step(latent=latent[samples], text=text[samples], joint_attention_kwargs=prompt)

    plain = step(images[0])
    with turbovlm.applied(model, SOME):
        merged = step(images[0])
        assert not torch.allclose(merged, step(images[1]))
        # each sample gets its own image
        torch.testing.assert_close(step(images[0], slice(0, 1)), merged[:1])
    assert merged.shape == plain.shape
    assert not torch.allclose(merged, plain)


@pytest.mark.parametrize("off", [{}, {"cross_attention": 0.0}], ids=["all", "feed-forward alone"])
@pytest.mark.parametrize("metric", ["sketch", "key"])
@pytest.mark.parametrize("plan", ["block", "module"])
def test_blocks_without_self_attention(plan: str, metric: str, off: dict[str, float]) -> None:
    case = denoisers.upscaler()
    plain = case.step()
    kinds = {"cross_attention", "feed_forward"}
    setting = MergeRestore.from_dict(
        {"ratio": 0.3, "plan": plan, "preset": {"metric": metric}, **off}
    )
    with turbovlm.applied(case.model, setting) as run:
        merged = case.step()
        other = case.step(text=denoisers.noise(2, 7, 24, seed=9))
    # the middle has self-attention
    moves = [m for m in run.moves if m.fold is not None and "mid_block" not in m.name]
    assert {m.kind for m in moves} == kinds - set(off)
    assert not torch.allclose(merged, plain)
    assert not torch.allclose(merged, other)


def test_perturbed_attention_runs_on_part_of_the_batch() -> None:
    case = denoisers.unet()
    latent = denoisers.noise(1, 4, 16, 16).repeat(3, 1, 1, 1)
    text = denoisers.noise(3, 7, 24, seed=2)
    text[2] = text[1]
    inside = case.model.mid_block.attentions[0].transformer_blocks[0].attn1
    inside.set_processor(PAGCFGIdentitySelfAttnProcessor2_0())
    plain = case.step(latent=latent, text=text)
    assert not torch.allclose(plain[1], plain[2])  # the third is perturbed
    turbovlm.apply(case.model, SOME)
    with pytest.raises(UnsupportedInput, match=r"2 of 3 samples .*proportional=False"):
        case.step(latent=latent, text=text)
    turbovlm.remove(case.model)
    with turbovlm.applied(case.model, MergeRestore(ratio=0.3, proportional=False)):
        merged = case.step(latent=latent, text=text)
    assert not torch.allclose(merged, plain)
    assert not torch.allclose(merged[1], merged[2])


def test_a_cell_larger_than_a_level_is_cut_to_it() -> None:
    case = denoisers.unet(4, 4)  # levels of 4 x 4 and 2 x 2 tokens
    plain = case.step()
    with turbovlm.applied(case.model, MergeRestore(ratio=0.7, cell=(4, 8))) as run:
        merged = case.step()
    folds = {m.tokens: m.fold for m in run.moves}
    for tokens in (16, 4):
        fold = folds[tokens]
        assert fold is not None
        assert fold.plan.source.shape == (2, int(tokens * 0.7))
        assert {len(row.unique()) for row in fold.plan.destination} == {1}  # one cell, one taker
    assert not torch.allclose(merged, plain)
