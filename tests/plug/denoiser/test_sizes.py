"""Merged tokens count as often as they have members; what the prompt changed is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor
from torch.overrides import TorchFunctionMode

import turbovlm
from tests.hosts import denoisers
from turbovlm import MergeRestore
from turbovlm.errors import NotApplied, UnseenAttention
from turbovlm.plug.denoiser.guide import changed
from turbovlm.plug.denoiser.visible import counting

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
SIZES = torch.tensor([[1, 3, 2, 1], [2, 2, 2, 1]])  # of two samples, seven tokens each
SOME = MergeRestore(ratio=0.3)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def members(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every survivor as often as it has members, and where the first of each group went."""
    rows = [torch.repeat_interleave(torch.arange(4), sizes) for sizes in SIZES]
    first = torch.stack([sizes.cumsum(0) - sizes for sizes in SIZES])
    return torch.stack([s[row] for s, row in zip(x, rows, strict=True)]), first


def picked(x: Tensor, first: Tensor) -> Tensor:
    return torch.stack([s[row] for s, row in zip(x, first, strict=True)])


@pytest.mark.parametrize(
    "processor", [AttnProcessor2_0(), AttnProcessor(), SlicedAttnProcessor(slice_size=1)], ids=type
)
def test_self_attention_is_that_of_the_members(processor: Any) -> None:
    attention = denoisers.wild(Attention(8, heads=2, dim_head=4, processor=processor))
    x = denoisers.noise(2, 4, 8)
    whole, first = members(x)
    with counting(SIZES.log(), 0, False, 2, "attn1"):
        merged = attention(x)
    torch.testing.assert_close(merged, picked(attention(whole), first))
    assert not torch.allclose(merged, attention(x))


@pytest.mark.parametrize("prompt_first", [False, True], ids=["sd3", "flux"])
def test_in_joint_attention_the_prompt_keeps_its_weight(prompt_first: bool) -> None:
    shape: dict[str, Any] = {"added_kv_proj_dim": 8, "out_dim": 8, "context_pre_only": False}
    made: Any = FluxAttention(8, 2, 4, bias=True, **shape) if prompt_first else None
    if made is None:
        processor: Any = JointAttnProcessor2_0()
        made = Attention(8, heads=2, dim_head=4, processor=processor, **shape)
    attention: Any = denoisers.wild(made)
    x, text = denoisers.noise(2, 4, 8), denoisers.noise(2, 3, 8, seed=2)
    whole, first = members(x)
    with counting(SIZES.log(), 3, prompt_first, 2, "attn"):
        merged, prompt = attention(x, encoder_hidden_states=text)
    slow, slow_prompt = attention(whole, encoder_hidden_states=text)
    torch.testing.assert_close(merged, picked(slow, first))
    torch.testing.assert_close(prompt, slow_prompt)
    assert not torch.allclose(merged, attention(x, encoder_hidden_states=text)[0])


@pytest.mark.parametrize("make", denoisers.CASES, ids=lambda f: f.__name__)
def test_every_denoiser_counts_members(make: Callable[[], denoisers.Case]) -> None:
    case = make()
    plain = case.step()
    outs = []
    for proportional in (True, False):
        setting = MergeRestore(
            ratio=0.3, feed_forward=0.3, method="redundancy", proportional=proportional
        )
        with turbovlm.applied(case.model, setting):
            outs.append(case.step())
    assert not torch.allclose(outs[0], outs[1])
    assert not torch.allclose(outs[0], plain)


def test_slices_of_attention_give_the_same() -> None:
    case = denoisers.unet()
    case.model.double()  # so that rounding never changes which tokens are merged
    given = {
        "latent": denoisers.noise(2, 4, 16, 16).double(),
        "text": denoisers.noise(2, 7, 24, seed=2).double(),
    }
    with turbovlm.applied(case.model, SOME):
        fused = case.step(**given)
        case.model.set_attention_slice(1)
        torch.testing.assert_close(case.step(**given), fused)


def test_a_kernel_that_hides_its_logits_is_refused() -> None:
    case = denoisers.unet()

    def hidden(attention: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    turbovlm.apply(case.model, SOME)
    case.model.set_attn_processor(hidden)
    with pytest.raises(UnseenAttention, match=r"attn1 was not seen.*proportional=False"):
        case.step()
    turbovlm.remove(case.model)
    with turbovlm.applied(case.model, MergeRestore(ratio=0.3, proportional=False)):
        case.step()


@pytest.mark.parametrize("hidden", ["XFormersAttnProcessor", "flash", "_native_flash"])
def test_what_is_known_to_hide_its_logits_is_refused_at_once(hidden: str) -> None:
    case = denoisers.unet()
    processor: Any = XFormersAttnProcessor()
    if not hidden.startswith("XFormers"):
        processor = AttnProcessor2_0()
        processor._attention_backend = hidden
    attention = case.model.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.processor = processor
    with pytest.raises(UnseenAttention, match=rf"mid_block.*attn1 is computed by .*{hidden}"):
        turbovlm.apply(case.model, SOME)
    with pytest.raises(NotApplied):  # nothing was changed
        turbovlm.remove(case.model)
    for setting in (
        MergeRestore(ratio=0.3, proportional=False),
        MergeRestore(ratio=0.3, self_attention=0),
    ):
        turbovlm.remove(turbovlm.apply(case.model, setting))
    if hidden.startswith("XFormers"):
        return
    processor._attention_backend = "native"
    turbovlm.remove(turbovlm.apply(case.model, SOME))


def sources(case: denoisers.Case, setting: MergeRestore = SOME, **given: Any) -> list[Tensor]:
    with turbovlm.applied(case.model, setting) as run:
        case.step(**given)
    return [m.fold.plan.source for m in run.moves if m.fold is not None]


@pytest.mark.parametrize("make", [denoisers.unet, denoisers.pixart], ids=lambda f: f.__name__)
def test_under_guidance_what_the_prompt_changed_is_kept(
    make: Callable[[], denoisers.Case],
) -> None:
    case = make()
    latent = denoisers.noise(1, 4, *(16, 16) if case.name == "unet" else (32, 32))
    half = latent.repeat(2, 1, 1, 1)
    text, other = denoisers.noise(2, 7, 24, seed=2), denoisers.noise(2, 7, 24, seed=9)
    same = text[:1].repeat(2, 1, 1)
    paired = MergeRestore(ratio=0.3, guidance=True)
    plain = MergeRestore(ratio=0.3, alpha=0, guidance=True)
    # halves with the same prompt differ in nothing: redundancy alone decides
    for one, two in zip(
        sources(case, paired, latent=half, text=same),
        sources(case, plain, latent=half, text=same),
        strict=True,
    ):
        assert torch.equal(one, two)
    guided = sources(case, paired, latent=half, text=text)
    assert not all(
        torch.equal(one, two)
        for one, two in zip(guided, sources(case, plain, latent=half, text=text), strict=True)
    )
    assert not torch.equal(guided[-1], sources(case, paired, latent=half, text=other)[-1])


def test_tokens_that_the_prompt_moved() -> None:
    first = torch.zeros(1, 3, 2)
    second = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 15.0]]])
    torch.testing.assert_close(changed(first, second), torch.tensor([[0.0, 0.25, 0.75]]))
    assert torch.equal(changed(first, first), torch.zeros(1, 3))


def test_compiled_guidance_chooses_what_eager_guidance_does() -> None:
    case = denoisers.unet()
    case.model.double()
    given = {
        "latent": denoisers.noise(1, 4, 16, 16).repeat(2, 1, 1, 1).double(),
        "text": denoisers.noise(2, 7, 24, seed=2).double(),
    }
    with turbovlm.applied(case.model, MergeRestore(ratio=0.3, guidance=True)):
        eager = case.step(**given)
        compiled = torch.compile(case.model, backend="eager", fullgraph=True)
        torch.testing.assert_close(case.step(run=compiled, **given), eager)
    with turbovlm.applied(case.model, MergeRestore(ratio=0.3, alpha=0, guidance=True)):
        assert not torch.allclose(case.step(**given), eager)


class Masks(TorchFunctionMode):
    """Keeps the masks that fused attention gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            assert mask is not None
            self.seen.append(mask)
        return func(*args, **kwargs)


@pytest.mark.parametrize("make", [denoisers.sd3, denoisers.flux], ids=lambda f: f.__name__)
def test_a_row_says_where_the_prompt_stands(make: Callable[[], denoisers.Case]) -> None:
    case = make()
    with Masks() as masks, turbovlm.applied(case.model, SOME):
        case.step()
    assert masks.seen
    for mask in masks.seen:
        row = mask[0, 0, 0]
        front, back = row[:7], row[-7:]
        prompt = front if case.name == "flux" else back
        assert not prompt.any()
        assert row.any()
        visual = row[7:] if case.name == "flux" else row[:-7]
        assert len(visual) == 256 - 76
        assert int(visual.exp().round().sum()) == 256
