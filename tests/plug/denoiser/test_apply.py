"""Merge and restore enter every kind of denoiser and leave nothing behind."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import turbovlm
from tests.hosts import denoisers
from turbovlm import MergeRestore
from turbovlm.config import RestorePreset
from turbovlm.errors import (
    AlreadyApplied,
    ConfigError,
    NotApplied,
    NothingToPatch,
    TurboError,
    UnknownArchitecture,
    UnsupportedInput,
)
from turbovlm.maths.fold import fold_tokens
from turbovlm.maths.match import unit_rows
from turbovlm.maths.sets import grid_sets

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
SOME = MergeRestore(ratio=0.3)
CASES = pytest.mark.parametrize("make", denoisers.CASES, ids=lambda f: f.__name__)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def marks(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if any("turbo" in k.lower() for k in vars(m))]


@CASES
def test_applied_and_removed(make: Callable[[], denoisers.Case]) -> None:
    case = make()
    classes = [type(m) for m in case.model.modules()]
    keys = list(case.model.state_dict())
    plain = case.step()
    turbovlm.apply(case.model, MergeRestore(ratio=0.0))
    assert torch.equal(case.step(), plain)
    turbovlm.remove(case.model)
    with turbovlm.applied(case.model, SOME) as run:
        merged = case.step()
        assert torch.equal(case.step(), merged)
        assert list(case.model.state_dict()) == keys
        assert all(isinstance(m, c) for m, c in zip(case.model.modules(), classes, strict=True))
    moves = run.moves
    assert len(moves) == case.modules
    for move in moves:
        assert move.fold is not None, move.name
        assert move.fold.plan.source.shape == (case.images, int(move.tokens * 0.3)), move.name
    assert moves[0].tokens == case.tokens
    assert merged.shape == plain.shape
    assert not torch.allclose(merged, plain)
    assert torch.equal(case.step(), plain)
    assert [type(m) for m in case.model.modules()] == classes
    assert marks(case.model) == []


@CASES
def test_each_kind_of_module_can_be_left_alone(make: Callable[[], denoisers.Case]) -> None:
    case = make()
    with turbovlm.applied(case.model, SOME) as run:
        case.step()
    kinds = {m.kind for m in run.moves}
    for kind in kinds - {"whole"}:
        with turbovlm.applied(case.model, MergeRestore.from_dict({"ratio": 0.3, kind: 0.0})) as run:
            case.step()
        still = {m.kind for m in run.moves if m.fold is not None}
        needs_both = {"whole"} if kind != "cross_attention" else set()
        assert still == kinds - {kind} - needs_both
    with turbovlm.applied(case.model, MergeRestore(ratio=0.3, min_tokens=case.tokens)) as run:
        case.step()
    assert {m.tokens for m in run.moves if m.fold is not None} == {case.tokens}


def test_parts_of_the_denoising() -> None:
    case = denoisers.unet()
    plain = {time: case.step(time=time) for time in (900, 500, 100)}
    with turbovlm.applied(case.model, MergeRestore(ratio=(0.5, 0.25, 0.0))) as run:
        assert not torch.equal(case.step(time=900), plain[900])
        assert run.moves[0].fold is not None
        assert run.moves[0].fold.plan.source.shape[1] == 128
        case.step(time=500)
        assert run.moves[0].fold is not None
        assert run.moves[0].fold.plan.source.shape[1] == 64
        assert torch.equal(case.step(time=100), plain[100])


def test_destinations_are_drawn_by_seed_step_and_block() -> None:
    case = denoisers.unet()

    def destinations(config: MergeRestore, time: float) -> list[Tensor]:
        with turbovlm.applied(case.model, config) as run:
            case.step(time=time)
        folds = [m.fold for m in run.moves if m.tokens == 256 and m.kind == "self_attention"]
        return [fold.plan.destination.unique() for fold in folds if fold is not None]

    first = destinations(SOME, 500)
    assert all(torch.equal(a, b) for a, b in zip(first, destinations(SOME, 500), strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], destinations(SOME, 499)[0])
    assert not torch.equal(first[0], destinations(MergeRestore(ratio=0.3, seed=1), 500)[0])
    fixed = destinations(MergeRestore(ratio=0.3, seed=None), 500)
    assert all((f // 16 % 2 == 0).all() and (f % 16 % 2 == 0).all() for f in fixed)


def test_what_measures_similarity() -> None:
    case = denoisers.unet(block_out_channels=(96, 96))
    owners = {}
    for metric in ("sketch", "token", "key"):
        config = MergeRestore.from_dict({"ratio": 0.3, "preset": {"metric": metric}, "alpha": 0.0})
        with turbovlm.applied(case.model, config) as run:
            case.step()
        assert run.moves[0].fold is not None
        owners[metric] = run.moves[0].fold.plan.source
    assert not torch.equal(owners["sketch"], owners["token"])
    assert not torch.equal(owners["key"], owners["token"])

    def same(a: Tensor, b: Tensor) -> float:
        pairs = zip(a.tolist(), b.tolist(), strict=True)
        return sum(len(set(x) & set(y)) for x, y in pairs) / a.numel()

    # random tokens are all about as far from each other; by chance it would be two fifths
    assert same(owners["sketch"], owners["token"]) > 0.55
    assert same(owners["sketch"], owners["token"]) > same(owners["key"], owners["token"])


def test_halves_of_guidance_share_a_plan_and_images_do_not() -> None:
    case = denoisers.unet()
    twice = denoisers.noise(1, 4, 16, 16).repeat(2, 1, 1, 1)
    for guidance in (None, False, True):
        with turbovlm.applied(case.model, MergeRestore(ratio=0.3, guidance=guidance)) as run:
            case.step(latent=twice)
        same = [torch.equal(*m.fold.plan.source) for m in run.moves if m.fold is not None]
        assert all(same) if guidance else not all(same)


def test_a_picture_does_not_depend_on_another_one_of_the_same_noise() -> None:
    case = denoisers.unet()
    case.model.double()
    latent = denoisers.noise(1, 4, 16, 16).double()
    text = denoisers.noise(2, 7, 24, seed=2).double()
    plain = case.step(latent=latent, text=text[:1])
    with turbovlm.applied(case.model, SOME):
        alone = case.step(latent=latent, text=text[:1])
        beside = case.step(latent=latent.repeat(2, 1, 1, 1), text=text)
    torch.testing.assert_close(beside[:1], alone)
    assert not torch.allclose(alone, plain)


def test_an_odd_batch_is_no_guidance() -> None:
    case = denoisers.unet()
    given = {"latent": denoisers.noise(3, 4, 16, 16), "text": denoisers.noise(3, 7, 24, seed=2)}
    plain = case.step(**given)
    turbovlm.apply(case.model, MergeRestore(ratio=0.3, guidance=True))
    with pytest.raises(UnsupportedInput, match="3 samples are not two halves"):
        case.step(**given)
    turbovlm.remove(case.model)
    assert torch.equal(case.step(**given), plain)


@CASES
def test_compiled_in_one_graph(make: Callable[[], denoisers.Case]) -> None:
    case = make()
    turbovlm.apply(case.model, SOME)
    merged = case.step()
    torch._dynamo.reset()
    if case.name == "flux":  # its image's height and width are values, not shapes
        case.model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(case.step(), merged)
        return
    compiled = torch.compile(case.model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(case.step(run=compiled), merged)
    other = case.step(time=321, run=compiled)  # another step needs no other graph
    torch.testing.assert_close(other, case.step(time=321))
    torch._dynamo.reset()


@CASES
def test_copies_and_files_keep_the_patch(make: Callable[[], denoisers.Case]) -> None:
    case = make()
    plain = case.step()
    turbovlm.apply(case.model, SOME)
    merged = case.step()
    twin = copy.deepcopy(case.model)
    file = io.BytesIO()
    torch.save(case.model, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    turbovlm.remove(case.model)
    for other in (twin, read):
        assert torch.equal(case.step(run=other), merged)
        turbovlm.remove(other)
        assert torch.equal(case.step(run=other), plain)
        assert marks(other) == []


def test_threads_do_not_mix() -> None:
    case = denoisers.unet()
    turbovlm.apply(case.model, SOME)
    latents = [denoisers.noise(2, 4, 16, 16 + 8 * (i % 2), seed=i) for i in range(6)]
    alone = [case.step(latent=latent) for latent in latents]
    results: dict[int, Tensor] = {}

    def work(index: int) -> None:
        with torch.no_grad():
            results[index] = case.step(latent=latents[index])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        torch.testing.assert_close(results[index], expected)


def test_half_precision_and_autocast() -> None:
    case = denoisers.unet()
    plain, latent = case.step(), denoisers.noise(2, 4, 16, 16)
    turbovlm.apply(case.model, SOME)
    merged = case.step()
    with torch.autocast("cpu", torch.bfloat16):
        near = case.step()
    assert (near - merged).norm() / merged.norm() < 0.1
    case.model.bfloat16()
    low = case.step(latent=latent.bfloat16(), text=denoisers.noise(2, 7, 24, seed=2).bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.float() - merged).norm() < (merged - plain).norm()


def test_shapes_that_do_not_divide() -> None:
    case = denoisers.unet(10, 14)  # levels of 10 x 14 and 5 x 7
    plain = case.step()
    with turbovlm.applied(case.model, MergeRestore(ratio=0.7)) as run:
        merged = case.step()
    assert {m.tokens for m in run.moves} == {140, 35}
    assert not torch.allclose(merged, plain)


def test_bad_input_changes_nothing() -> None:
    case = denoisers.unet()
    model, plain = case.model, case.step()
    with pytest.raises(ConfigError, match="MergeRestore"):
        turbovlm.apply(model, turbovlm.Merge(r=4))
    with pytest.raises(ConfigError, match="MergeRestore"):
        turbovlm.apply(model)
    with pytest.raises(
        UnknownArchitecture, match=r"known are .*SD3Transformer2DModel.*turbovlm.Merge"
    ):
        turbovlm.apply(nn.Linear(2, 2), SOME)
    with pytest.raises(UnknownArchitecture, match="got str"):
        turbovlm.apply("stable-diffusion", SOME)
    turbovlm.apply(model, SOME)
    turbovlm.apply(model, SOME)  # the same again: nothing to do
    with pytest.raises(AlreadyApplied):
        turbovlm.apply(model, MergeRestore(ratio=0.2))
    block = next(m for m in model.modules() if type(m).__name__ == "BasicTransformerBlock")
    with pytest.raises(TurboError, match="outside its denoiser"):
        block(torch.zeros(1, 16, 32), encoder_hidden_states=torch.zeros(1, 3, 24))
    with turbovlm.recording(model) as run:
        case.step()
        with pytest.raises(NotApplied, match=r"records no such thing"):
            _ = run.trace
    turbovlm.remove(model)
    with pytest.raises(NotApplied):
        turbovlm.remove(model)
    assert torch.equal(case.step(), plain)
    assert marks(model) == []


def test_a_forward_replaced_by_another_plug_in_is_refused() -> None:
    case = denoisers.unet()
    plain = case.step()
    last = [m for n, m in case.model.named_modules() if n.endswith(".ff")][-1]
    original = last.forward
    last.forward = lambda *args, **kwargs: original(*args, **kwargs)
    with pytest.raises(turbovlm.TurboError, match="replaced on the instance"):
        turbovlm.apply(case.model, SOME)
    assert torch.equal(case.step(), plain)
    assert marks(case.model) == []


def test_a_unet_without_prompts_has_nothing_to_merge() -> None:
    case = denoisers.unet(
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
    )
    with pytest.raises(NothingToPatch, match="no BasicTransformerBlock"):
        turbovlm.apply(case.model, SOME)


def test_masks_along_the_image_are_refused() -> None:
    case = denoisers.unet()
    with (
        turbovlm.applied(case.model, SOME),
        pytest.raises(UnsupportedInput, match="self_attention=0"),
    ):
        case.step(attention_mask=torch.ones(2, 256))
    prompt = torch.ones(2, 7)
    prompt[:, 4:] = 0
    plain = case.step(encoder_attention_mask=prompt)
    with turbovlm.applied(case.model, SOME):
        merged = case.step(encoder_attention_mask=prompt)
    assert not torch.allclose(merged, plain)


def test_chunked_feed_forward() -> None:
    case = denoisers.unet()

    def chunk(size: int | None, dim: int) -> None:
        for module in case.model.modules():
            if hasattr(module, "set_chunk_feed_forward"):
                module.set_chunk_feed_forward(size, dim)

    with turbovlm.applied(case.model, SOME):
        merged = case.step()
        for part in ((1, 0), (64, 1)):  # one image, or some tokens, at a time
            chunk(*part)
            with pytest.raises(UnsupportedInput, match="chunked feed-forward"):
                case.step()
        chunk(None, 0)
        assert torch.equal(case.step(), merged)


def test_flux_measures_each_block_itself_and_tables_follow_the_survivors() -> None:
    case = denoisers.flux()
    config = MergeRestore(
        ratio=0.3, method="redundancy", preset=RestorePreset(metric="token"), seed=None
    )
    block: Any = case.model.single_transformer_blocks[0]
    came: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    block.register_forward_pre_hook(lambda m, a, k: came.append(k), with_kwargs=True)
    block.attn.register_forward_pre_hook(lambda m, a, k: asked.append(k), with_kwargs=True)
    with turbovlm.applied(case.model, config) as run:
        case.step()
    fold = next(m.fold for m in run.moves if m.kind == "whole")
    assert fold is not None
    parts = grid_sets((16, 16), config.cell, None, torch.device("cpu"))
    unit = unit_rows(came[0]["hidden_states"])
    expected = fold_tokens(unit, None, 76, parts, config.rule)
    assert torch.equal(fold.owner, expected.owner)
    assert len(asked) == 2  # one sample after the other
    for keep, given in zip(fold.plan.keep, asked, strict=True):
        rows = [*range(7), *(keep + 7).tolist()]
        for own, table in zip(given["image_rotary_emb"], came[0]["image_rotary_emb"], strict=True):
            assert torch.equal(own, table[rows])
