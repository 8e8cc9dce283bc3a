"""Masks: padding is told apart from every other mask, and one input's answer is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import turbovlm
from tests.hosts.zoo import CASES as COMMON
from tests.hosts.zoo import SIZES, TEXT, TIMM, Case, pixels, wild, words
from tests.hosts.zoo_copies import COPIES, NOISE
from turbovlm import Merge
from turbovlm.errors import UnsupportedInput
from turbovlm.hosts import rows
from turbovlm.plug.encoder.find import find_towers

CASES = [
    case
    for case in COMMON + COPIES
    if find_towers(case.build(), rows())[0].row.padding and "backbone" not in case.name
]
GRIDS = ("idefics2", "idefics3", "smolvlm")
MERGES = (Merge(r=4), Merge(ratio=0.15), Merge(r=4, min_tokens=30), Merge(r=4, method="redundancy"))
TOLERANCE: dict[str, Any] = {"atol": 2e-5, "rtol": 2e-5}


def run(case: Case, model: Any, x: Tensor, real: Tensor) -> Tensor:
    """Every row's own way to say which tokens are padding: ``real`` ``(B, N)``."""
    batch = len(x)
    if case.name == "siglip2":
        patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1)
        patches = patches.reshape(batch, 64, 192)[:, : real.shape[1]]
        shapes = torch.tensor([[5, 8]] * batch)
        return model(patches, real.long(), shapes).last_hidden_state
    if case.name in GRIDS:
        return model(x, patch_attention_mask=real.view(batch, 8, 8)).last_hidden_state
    if case.name == "vit_mae":
        noise = NOISE[:1].expand(batch, -1)
        return model(x, noise=noise, attention_mask=real.long()).last_hidden_state
    if case.name == "ast":
        return model(x.transpose(1, 2), attention_mask=real.long()).last_hidden_state
    if case.inputs is words:
        places = (real.cumsum(1) - 1).clamp_min(0) + 2  # as RoBERTa counts them
        return model(
            input_ids=torch.where(real, x, 1), attention_mask=real.long(), position_ids=places
        ).last_hidden_state
    return model(x, attention_mask=real.long()).last_hidden_state


def masks(case: Case, tokens: int) -> Tensor:
    """``(3, N)``: all of it, the front, and a front with a hole (a grid's right edge is one)."""
    real = torch.ones(3, tokens, dtype=torch.bool)
    real[1, tokens * 2 // 3 :] = False
    real[2, tokens // 2 :] = False
    if case.inputs is not words:
        real[2, tokens // 4 : tokens // 3] = False
    return real


def length(case: Case, model: Any) -> int:
    seen: list[int] = []
    block = find_towers(model, rows())[0].blocks[0]
    handle = block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    case.run(model, case.inputs())
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("config", MERGES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@torch.no_grad()
def test_the_answer_does_not_depend_on_the_neighbours(case: Case, config: Merge) -> None:
    model = case.build()
    real = masks(case, length(case, model))
    x, other = case.inputs(batch=3), case.inputs(batch=3, seed=8)
    host = run(case, model, x, real)
    turbovlm.apply(model, config)
    together = run(case, model, x, real)
    assert (together - host)[real].abs().max() > 1e-3
    for i in range(3):
        alone = run(case, model, x[i : i + 1], real[i : i + 1])
        torch.testing.assert_close(together[i][real[i]], alone[0][real[i]], **TOLERANCE)
        among = other.clone()
        among[i] = x[i]
        strangers = real.roll(1, 0).clone()
        strangers[i] = real[i]
        again = run(case, model, among, strangers)
        torch.testing.assert_close(together[i][real[i]], again[i][real[i]], **TOLERANCE)


TEXTS = [case for case in CASES if case.inputs is words]


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("config", MERGES, ids=str)
@pytest.mark.parametrize("case", TEXTS, ids=lambda c: c.name)
@torch.no_grad()
def test_the_answer_does_not_depend_on_the_amount_of_padding(
    case: Case, config: Merge, left: bool
) -> None:
    model, text = case.build(), words()[:1, :32]
    whole = torch.ones(1, 32, dtype=torch.bool)
    host = run(case, model, text, whole)
    turbovlm.apply(model, config)
    expected = run(case, model, text, whole)
    assert (expected - host).abs().max() > 1e-3 or config.min_tokens > 30
    for more in (1, 2, 9):
        junk = torch.full((1, more), 7)
        ids = torch.cat([junk, text] if left else [text, junk], 1)
        real = torch.cat([junk < 0, whole] if left else [whole, junk < 0], 1)
        found = run(case, model, ids, real)[real]
        torch.testing.assert_close(found, expected[0], **TOLERANCE)


@torch.no_grad()
def test_patches_of_a_smaller_picture_do_not_depend_on_the_padding() -> None:
    case = next(c for c in CASES if c.name == "siglip2")
    model, x = case.build(), pixels(1)
    for config in MERGES:
        turbovlm.apply(model, config)
        found = []
        for tokens in (40, 47, 64):
            real = (torch.arange(tokens) < 40)[None]
            found.append(run(case, model, x, real)[0, :40])
        turbovlm.remove(model)
        torch.testing.assert_close(found[1], found[0], **TOLERANCE)
        torch.testing.assert_close(found[2], found[0], **TOLERANCE)


@torch.no_grad()
def test_a_wanted_speedup_is_refused_with_padding() -> None:
    """Its r would come from the length of the batch, and so from the neighbours."""
    model = wild(hf.BertModel(hf.BertConfig(**TEXT)))
    turbovlm.apply(model, Merge(speedup=1.2))
    assert model(words()).last_hidden_state.shape == (2, 40, 48)
    with pytest.raises(UnsupportedInput, match="give r or ratio"):
        model(words(), attention_mask=masks(TEXTS[0], 40)[1:].long())


SHALLOW: dict[str, Any] = {"num_hidden_layers": 2}
SHORT: dict[str, Any] = TIMM | {"depth": 2}


def _bert() -> tuple[Any, Callable[[Any, Any], Tensor], int]:
    model: Any = wild(hf.BertModel(hf.BertConfig(**TEXT | SHALLOW)))
    return model, lambda m, mask: m(words(), attention_mask=mask).last_hidden_state, 40


def _vit() -> tuple[Any, Callable[[Any, Any], Tensor], int]:
    model: Any = wild(hf.ViTModel(hf.ViTConfig(**SIZES | SHALLOW)))
    return model, lambda m, mask: m(pixels(), attention_mask=mask).last_hidden_state, 65


def _timm() -> tuple[Any, Callable[[Any, Any], Tensor], int]:
    model: Any = wild(VisionTransformer(**SHORT))
    return model, lambda m, mask: m.forward_features(pixels(), attn_mask=mask), 65


def _soft(n: int) -> Tensor:
    return torch.randn(2, 1, 1, n, generator=torch.Generator().manual_seed(0))


def _causal(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril().expand(2, 1, n, n)


def _per_head(n: int) -> Tensor:
    mask = torch.ones(2, 4, 1, n, dtype=torch.bool)
    mask[:, 2, :, n // 2 :] = False
    return mask


def _window(n: int) -> Tensor:
    places = torch.arange(n)
    return ((places[:, None] - places).abs() < 9).expand(2, 1, n, n)


def _packed(n: int) -> Tensor:
    owner = torch.arange(n) // (n // 2)
    return (owner[:, None] == owner).expand(2, 1, n, n)


def _infinite(n: int) -> Tensor:
    """Padding, as numbers that are added: nothing but its values tells it from a bias."""
    return torch.zeros(2, 1, 1, n).masked_fill(torch.arange(n) > n - 9, float("-inf"))


OTHER = (_soft, _causal, _per_head, _window, _packed, _infinite)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("mask", OTHER, ids=lambda f: f.__name__)
@pytest.mark.parametrize("build", [_bert, _vit, _timm], ids=lambda f: f.__name__)
@torch.no_grad()
def test_masks_that_are_no_padding_are_refused(
    build: Callable[[], Any], mask: Callable[[int], Tensor], compiled: bool
) -> None:
    model, call, tokens = build()
    given = mask(tokens)
    host = call(model, given)
    turbovlm.apply(model, Merge(r=4))
    function: Callable[[Tensor], Tensor] = lambda m: call(model, m)  # noqa: E731
    if compiled:
        torch._dynamo.reset()
        function = torch.compile(function, backend="eager")
    with pytest.raises(UnsupportedInput, match="not known to mark padding"):
        function(given)
    turbovlm.remove(model)
    assert torch.equal(call(model, given), host)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("build", [_bert, _vit, _timm], ids=lambda f: f.__name__)
@torch.no_grad()
def test_a_bool_mask_that_all_samples_share(build: Callable[[], Any], compiled: bool) -> None:
    model, call, tokens = build()
    shared = (torch.arange(tokens) < tokens - 9)[None, None, None]
    host = call(model, shared)
    turbovlm.apply(model, Merge(r=4))
    function: Callable[[Tensor], Tensor] = lambda m: call(model, m)  # noqa: E731
    if compiled:
        torch._dynamo.reset()
        function = torch.compile(function, backend="eager")
    merged = function(shared)
    torch.testing.assert_close(merged, call(model, shared.expand(2, -1, -1, -1)), **TOLERANCE)
    assert (merged - host)[:, : tokens - 9].abs().max() > 1e-3
    if build is not _timm:
        flat = call(model, shared[:, 0, 0].expand(2, -1).long())
        torch.testing.assert_close(merged, flat, **TOLERANCE)


@pytest.mark.parametrize("name", ["bert", "siglip2"])
@torch.no_grad()
def test_compiled_and_eager_agree_on_padding(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    model = case.build()
    x, real = case.inputs(batch=3), masks(case, length(case, model))
    turbovlm.apply(model, Merge(r=4))
    expected = run(case, model, x, real)
    torch._dynamo.reset()
    compiled = torch.compile(lambda t, m: run(case, model, t, m), backend="eager")
    torch.testing.assert_close(compiled(x, real)[real], expected[real], **TOLERANCE)


class Sum(nn.Module):
    """Two towers beside one another, one with padding and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.words = wild(hf.BertModel(hf.BertConfig(**TEXT)))
        self.again = wild(hf.BertModel(hf.BertConfig(**TEXT)), seed=1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        first = self.words(ids, attention_mask=mask).last_hidden_state
        return first + self.again(ids).last_hidden_state


@torch.no_grad()
def test_padding_of_one_tower_is_not_that_of_another() -> None:
    model, mask = Sum(), masks(TEXTS[0], 40)[:2].long()
    turbovlm.apply(model, Merge(r=4))
    merged = model(words(), mask)
    with turbovlm.recording(model) as run_:
        model(words(), mask)
        padded, plain = run_.traces
    assert padded.order is not None
    assert plain.order is None
    alone = model.words(words(), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(merged - model.again(words()).last_hidden_state, alone, **TOLERANCE)
