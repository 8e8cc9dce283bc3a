"""The state of a forward: checkpointing of every kind, transforms, threads, interruptions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import turbovlm
from tests.hosts.zoo import SIZES, TIMM, pixels, spectra, wild
from turbovlm import Merge
from turbovlm.errors import TurboError
from turbovlm.plug.state import Memory

R = 5


WHISPER: dict[str, Any] = {
    "d_model": 48, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 96,
    "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 96,
    "max_source_positions": 60, "num_mel_bins": 16, "vocab_size": 50, "pad_token_id": 0,
    "encoder_layerdrop": 0.5, "num_labels": 3, "classifier_proj_size": 8,
}  # fmt: skip


def vit(**fields: Any) -> Any:
    return wild(VisionTransformer(**TIMM | fields))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("segments", [1, 2, 3])
def test_checkpointing_of_several_blocks_at_once(segments: int, reentrant: bool) -> None:
    """Twenty steps of training, each with other pictures and so at other addresses."""
    model = vit().train()
    turbovlm.apply(model, Merge(r=R))

    def forward(x: Tensor, whole: bool) -> Tensor:
        y = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        if whole:
            y = model.blocks(y)
        else:
            y = checkpoint_sequential(model.blocks, segments, y, use_reentrant=reentrant)
        return model.head(model.norm(y)[:, 0]).pow(2).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(20):
        x = pixels(batch=1 + step % 3, seed=step)
        expected = gradients(model, forward(x, whole=True))
        again = gradients(model, forward(x, whole=False))
        same(again, expected)
        optimizer.step()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_a_whole_tower_and_ten_forwards_at_once(reentrant: bool) -> None:
    model = vit().train()
    turbovlm.apply(model, Merge(r=R))
    crops = [pixels(batch=1, seed=i).requires_grad_() for i in range(10)]
    expected = gradients(model, sum(model(x).pow(2).mean() for x in crops))  # type: ignore[arg-type]
    again: Any = sum(checkpoint(model, x, use_reentrant=reentrant).pow(2).mean() for x in crops)
    same(gradients(model, again), expected)
    model.set_grad_checkpointing(True)
    same(gradients(model, sum(model(x).pow(2).mean() for x in crops)), expected)  # type: ignore[arg-type]


def test_layerdrop_trains_or_says_what_to_do() -> None:
    config = hf.WhisperConfig(**WHISPER)
    model: Any = wild(hf.WhisperForAudioClassification(config)).train()
    turbovlm.apply(model, Merge(r=R))
    torch.manual_seed(0)
    ran, said = 0, set()
    for step in range(20):
        try:
            logits = model(spectra(seed=step)).logits
        except TurboError as error:
            said.add("layerdrop=0" in str(error) or "set it to 0" in str(error))
            continue
        assert logits.shape == (2, 3)
        logits.sum().backward()
        ran += 1
    assert ran
    assert said == {True}
    model.config.encoder_layerdrop = model.encoder.layerdrop = 0.0
    assert model(spectra()).logits.shape == (2, 3)  # and nothing of a refused forward stays


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms() -> None:
    model = vit()
    turbovlm.apply(model, Merge(r=R))
    parameters = {k: v.detach() for k, v in model.named_parameters()}

    def loss(given: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, given, (x,)).pow(2).mean()

    expected = gradients(model, model(pixels()).pow(2).mean())
    same(torch.func.grad(loss)(parameters, pixels()), expected)
    value, backward, *_ = torch.func.vjp(lambda p: loss(p, pixels()), parameters)
    same(backward(torch.ones_like(value))[0], expected)

    def one(x: Tensor) -> Tensor:
        return model(x[None])[0]

    batch = pixels(batch=3)
    with torch.no_grad():
        found = torch.func.vmap(one)(batch)
        torch.testing.assert_close(found, model(batch), atol=1e-5, rtol=1e-5)


class Stop(Exception):
    pass


@pytest.mark.parametrize("where", ["attn", "mlp", "norm1"])
@torch.no_grad()
def test_a_forward_that_raises_leaves_nothing_behind(where: str) -> None:
    model = vit(dynamic_img_size=True)
    turbovlm.apply(model, Merge(r=R))
    expected, small = model(pixels()), pixels()[..., :32, :32]
    expected_small = model(small)

    def stop(*_: Any) -> None:
        raise Stop

    handle = getattr(model.blocks[2], where).register_forward_pre_hook(stop)
    with turbovlm.recording(model) as run:
        for x in (pixels(), small):
            with pytest.raises(Stop):
                model(x)
        handle.remove()
        assert torch.equal(model(small), expected_small)
        assert run.trace.start == 17
    assert torch.equal(model(pixels()), expected)


@torch.no_grad()
def test_recordings_in_threads_and_nested() -> None:
    model = vit(dynamic_img_size=True)
    turbovlm.apply(model, Merge(r=R))
    starts = {64: 65, 32: 17, 48: 37}
    wrong: list[str] = []

    def work(side: int) -> None:
        with torch.no_grad(), turbovlm.recording(model) as outer:
            for _ in range(10):
                with turbovlm.recording(model) as inner:
                    model(pixels()[..., :side, :side])
                    if inner.trace.start != starts[side]:
                        wrong.append(f"inner {side}: {inner.trace.start}")
                if outer.trace.start != starts[side]:
                    wrong.append(f"outer {side}: {outer.trace.start}")

    threads = [threading.Thread(target=work, args=(side,)) for side in starts for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    with turbovlm.recording(model) as outer, turbovlm.recording(model) as inner:
        model(pixels())
    assert outer.trace.tokens == inner.trace.tokens == (60, 55, 50, 45)


@torch.no_grad()
def test_a_dynamic_compile_ends_and_agrees() -> None:
    torch._dynamo.reset()
    model = vit(dynamic_img_size=True)
    host = model(pixels())
    turbovlm.apply(model, Merge(ratio=0.1))
    compiled = torch.compile(model, backend="eager", dynamic=True)
    for side in (64, 40):
        x = pixels()[..., :side, :side].contiguous()
        torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(pixels()), host, atol=1e-3)


@pytest.mark.parametrize("reader", [True, False], ids=["hidden states", "plain"])
def test_checkpointing_with_hidden_states(reader: bool) -> None:
    """The hooks that collect hidden states do not look when a block runs again."""
    model: Any = wild(hf.ViTModel(hf.ViTConfig(**SIZES))).train()
    turbovlm.apply(model, Merge(r=R))

    def loss() -> Tensor:
        y = model(pixels(), output_hidden_states=reader)
        states: Callable[..., Any] = lambda: sum(h.pow(2).mean() for h in y.hidden_states)  # noqa: E731
        return y.last_hidden_state.pow(2).mean() + (states() if reader else 0)

    expected = gradients(model, loss())
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        same(gradients(model, loss()), expected)


def test_two_threads_may_forget_the_same_tensors() -> None:
    memory: Memory[int] = Memory()

    class Gone:
        """Another thread sweeps while this one asks."""

        asked = False

        def expired(self) -> bool:
            if not Gone.asked:
                Gone.asked = True
                memory.sweep()
            return True

    gone: Any = Gone()
    memory._entries = {(number,): (gone, number) for number in range(3)}
    memory.sweep()
    assert Gone.asked
    assert len(memory) == 0
