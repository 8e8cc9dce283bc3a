"""Forwards of a patched model: threads, traces, odd inputs, and models that generate."""

from __future__ import annotations

import threading
from typing import Any

import open_clip.transformer
import pytest
import torch
import transformers as hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import turbovlm
from tests.hosts.zoo import SIZES, TEXT, TIMM, padding, pixels, wild, words
from turbovlm import Merge, errors
from turbovlm.maths.schedule import lengths
from turbovlm.plug.swap import site_of


def vit(**fields: Any) -> Any:
    return wild(VisionTransformer(**{**TIMM, **fields}))


def blip() -> Any:
    text = {
        "hidden_size": 48, "encoder_hidden_size": 48, "intermediate_size": 96, "vocab_size": 60,
        "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1, "sep_token_id": 2,
        "pad_token_id": 0, "initializer_range": 0.02, "projection_dim": 16,
    }  # fmt: skip
    config = hf.BlipConfig(
        vision_config={**SIZES, "initializer_range": 0.02}, text_config=text, projection_dim=16
    )
    return wild(hf.BlipForConditionalGeneration(config))


@torch.no_grad()
def test_trace_tells_lengths_sizes_and_representatives() -> None:
    model, x = vit(), pixels()
    with turbovlm.applied(model, Merge(r=5)) as run:
        with pytest.raises(errors.NotApplied, match="run the model first"):
            _ = run.trace
        model(x)
        trace = run.trace
    assert trace.tokens == lengths(Merge(r=5).schedule, 65, 1, 4) == (60, 55, 50, 45)
    assert trace.prefix_tokens == 1
    assert trace.sizes is not None
    assert trace.sizes.sum(1).tolist() == [65, 65]
    owner, survivors = trace.representative(), trace.survivors()
    for row in range(2):
        assert torch.bincount(owner[row]).tolist() == trace.sizes[row].tolist()
        # a survivor represents itself
        assert owner[row, survivors[row]].tolist() == list(range(45))
    assert trace.survivors(1).shape == (2, 60)


@torch.no_grad()
def test_recording_on_an_applied_model_and_without_a_merge() -> None:
    model, x = vit(), pixels()
    with pytest.raises(errors.NotApplied), turbovlm.recording(model):
        pass
    turbovlm.apply(model, Merge(r=0))
    with turbovlm.recording(model) as run:
        model(x)
    assert run.trace.tokens == (65, 65, 65, 65)
    assert run.trace.sizes is None
    assert run.trace.representative().tolist() == [list(range(65))]


@torch.no_grad()
def test_two_threads_on_one_model() -> None:
    model = vit()
    turbovlm.apply(model, Merge(r=5))
    inputs = [pixels(seed=i) for i in range(4)]
    expected = [model(x) for x in inputs]
    wrong: list[str] = []
    start = threading.Barrier(4)

    def work(index: int) -> None:
        start.wait()
        with torch.no_grad():
            for _ in range(25):
                if not torch.equal(model(inputs[index]), expected[index]):
                    wrong.append(f"thread {index}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


@torch.no_grad()
def test_other_batch_and_image_sizes_and_an_interrupted_forward() -> None:
    model = vit(dynamic_img_size=True)
    turbovlm.apply(model, Merge(r=5))
    expected = model(pixels())

    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    handle = model.blocks[2].mlp.register_forward_pre_hook(stop)  # inside a half block
    with pytest.raises(Stop):
        model(pixels(batch=3))
    handle.remove()
    assert isinstance(model.blocks[2].mlp, torch.nn.Module)
    for batch, side in ((1, 64), (3, 96), (2, 32)):
        x = torch.randn(batch, 3, side, side)
        assert model(x).shape == (batch, 10)
    assert torch.equal(model(pixels()), expected)


@torch.no_grad()
def test_a_block_on_its_own_merges_and_gives_every_position_back() -> None:
    model = vit()
    turbovlm.apply(model, Merge(r=5))
    x = torch.randn(1, 65, 48, generator=torch.Generator().manual_seed(0))
    y = model.blocks[2](x)
    assert y.shape == x.shape
    turbovlm.remove(model)
    assert not torch.allclose(y, model.blocks[2](x), atol=1e-4)


@torch.no_grad()
def test_blocks_run_by_hand_carry_their_sizes_along() -> None:
    """What the tower's own forward merges, a loop over its blocks merges too."""
    model: Any = vit()
    x = pixels()
    turbovlm.apply(model, Merge(r=5))
    expected = model.forward_features(x)
    y = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    with turbovlm.recording(model) as run:
        for block in model.blocks:
            y = block(y)
    assert torch.equal(model.norm(y), expected)
    assert run.trace.tokens == (60, 55, 50, 45)


@torch.no_grad()
def test_tokens_added_between_blocks_are_refused() -> None:
    model = vit()
    turbovlm.apply(model, Merge(r=5))

    def append(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        return (torch.cat([args[0], args[0][:, :1]], 1),)

    model.blocks[2].register_forward_pre_hook(append)
    with pytest.raises(errors.UnsupportedInput, match="adds, drops or reorders"):
        model(pixels())


@torch.no_grad()
def test_padding_leaks_nothing_and_leaves_first() -> None:
    model, ids = wild(hf.BertModel(hf.BertConfig(**TEXT))), words()
    real = padding(40, 23)
    mask = real.long()

    def run(ids: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask).last_hidden_state

    host = run(ids)
    for method in ("turbo", "redundancy", "semantics", "random"):
        with turbovlm.applied(model, Merge(r=3, method=method)) as handle:  # type: ignore[arg-type]
            merged, trace = run(ids), handle.trace
            junk = torch.where(real, ids, 7)
            assert torch.equal(run(junk)[real], merged[real]), method
        assert trace.sizes is not None
        assert trace.sizes.sum(1).tolist() == [40, 23]
        assert not torch.allclose(merged[real], host[real], atol=1e-3)
        # each sentence is merged as it would be alone, whatever the batch
        assert not torch.allclose(merged[1][:23], host[1][:23], atol=1e-3), method
        with turbovlm.applied(model, Merge(r=3, method=method)):
            alone = model(input_ids=ids[1:, :23]).last_hidden_state
        torch.testing.assert_close(merged[1:, :23], alone, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_masks_are_refused_only_where_they_would_be_wrong() -> None:
    ids = words()
    model: Any = wild(hf.BlipTextModel(hf.BlipTextConfig(**TEXT)))
    mask = torch.ones(2, 40, dtype=torch.long)
    turbovlm.apply(model, Merge(r=0))
    assert model(input_ids=ids, attention_mask=mask, is_decoder=True).last_hidden_state.shape[1]
    turbovlm.remove(model)
    turbovlm.apply(model, Merge(r=4))
    with pytest.raises(errors.UnsupportedInput, match=r"this call is causal"):
        model(input_ids=ids, attention_mask=mask, is_decoder=True)
    for name in ("cache", "past_key_values"):
        with pytest.raises(errors.UnsupportedInput, match=f"{name}=DynamicCache: a causal decoder"):
            model.encoder.layer[0](torch.randn(1, 12, 48), **{name: hf.DynamicCache()})
    model = vit()
    turbovlm.apply(model, Merge(r=4))
    with pytest.raises(errors.UnsupportedInput, match=r"shape \(65, 65\), is not known"):
        model.forward_features(pixels(), attn_mask=torch.ones(65, 65, dtype=torch.bool))
    with pytest.raises(errors.UnsupportedInput, match="is_causal=bool"):
        model.forward_features(pixels(), is_causal=True)


@torch.no_grad()
def test_a_tensor_that_no_row_names_is_refused() -> None:
    tower = open_clip.transformer.VisionTransformer(64, 8, 48, 4, 4, 2.0, output_dim=32)
    turbovlm.apply(tower, Merge(r=4))
    with pytest.raises(errors.UnsupportedInput, match=r"got attn_mask, a tensor of shape"):
        tower.transformer(torch.randn(1, 65, 48), attn_mask=torch.zeros(65, 65))


@torch.no_grad()
def test_tokens_first_is_refused() -> None:
    """open_clip can run (N, B, C): then the keys do not lie where the tokens do."""
    tower: Any = open_clip.transformer.VisionTransformer(64, 8, 48, 4, 4, 2.0, output_dim=32)
    for block in tower.transformer.resblocks:
        block.attn.batch_first = False
    with pytest.raises(errors.UnsuitableBlock, match="do not follow its tokens"):
        turbovlm.apply(tower, Merge(r=4))


@torch.no_grad()
def test_llava_reads_the_last_but_one_layer_and_counts_its_tokens() -> None:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**SIZES),
        text_config=hf.LlamaConfig(
            hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, vocab_size=100, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        image_token_index=99,
    )  # fmt: skip
    model: Any = wild(hf.LlavaForConditionalGeneration(config))
    ids = torch.tensor([[1] + [99] * 64 + [5, 6]] * 2)
    options: dict[str, Any] = {"input_ids": ids, "pixel_values": pixels()}
    host = model(**options).logits
    with turbovlm.applied(model, Merge(r=6)) as run:
        merged = model(**options).logits
        assert run.trace.tokens == (59, 53, 47, 41)
        assert model.generate(**options, max_new_tokens=4, do_sample=False).shape[0] == 2
        states = model.model.vision_tower(pixels(), output_hidden_states=True).hidden_states
        assert [h.shape[1] for h in states] == [65] * 5
    assert not torch.allclose(merged, host, atol=1e-3)
    assert torch.equal(model(**options).logits, host)


@torch.no_grad()
def test_a_text_tower_is_patched_only_when_it_is_given_itself() -> None:
    model: Any = hf.VisionTextDualEncoderModel(
        vision_model=hf.ViTModel(hf.ViTConfig(**SIZES)),
        text_model=hf.BertModel(hf.BertConfig(**TEXT)),
    ).eval()
    turbovlm.apply(model, Merge(r=5))
    with pytest.raises(errors.NotApplied):
        turbovlm.remove(model.text_model)
    turbovlm.apply(model.text_model, Merge(r=2))
    with turbovlm.recording(model) as run:
        model(input_ids=words(), pixel_values=pixels(), attention_mask=torch.ones(2, 40).long())
    assert sorted(t.tokens[-1] for t in run.traces) == [32, 45]
    turbovlm.remove(model)
    assert not hasattr(model.text_model.config, "turbovlm")


def test_training_with_drop_path_layer_scale_and_dropout() -> None:
    model = vit(drop_path_rate=0.3, init_values=0.5, proj_drop_rate=0.1).train()
    turbovlm.apply(model, Merge(r=5))
    model(pixels()).sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []


@torch.no_grad()
def test_hidden_states_have_every_position() -> None:
    model: Any = wild(hf.ViTModel(hf.ViTConfig(**SIZES)))
    x = pixels()
    host = model(pixel_values=x, output_hidden_states=True).hidden_states
    with turbovlm.applied(model, Merge(r=5)) as run:
        plain = model(pixel_values=x).last_hidden_state
        states = model(pixel_values=x, output_hidden_states=True).hidden_states
        one = model(pixel_values=x, output_hidden_states=[-2]).hidden_states
        trace = run.trace
    assert trace.tokens == (60, 55, 50, 45)
    assert [h.shape for h in states] == [h.shape for h in host]
    for block in range(1, 4):  # merged tokens share a value, and are told apart by nothing else
        owner = trace.representative(block)
        for sample in range(2):
            first = states[block][sample, trace.survivors(block)[sample]]
            assert torch.equal(first[owner[sample]], states[block][sample])
    assert torch.equal(model.layernorm(states[-1]), plain)
    assert torch.equal(one[3], states[3])
    assert not torch.allclose(states[3], host[3], atol=1e-3)


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_blip_generates_with_beams(fused: bool) -> None:
    model, x = blip(), pixels()
    if fused:
        turbovlm.fuse_attention(model)
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 8}
    expected = model.generate(pixel_values=x, **options)
    turbovlm.apply(model, Merge(r=0))
    assert torch.equal(model.generate(pixel_values=x, **options), expected)
    turbovlm.remove(model)
    with turbovlm.applied(model, Merge(r=8)) as run:
        assert model.generate(pixel_values=x, **options).shape[0] == 2
        assert run.trace.tokens[-1] == 65 - 4 * 8
    assert torch.equal(model.generate(pixel_values=x, **options), expected)


@torch.no_grad()
def test_fused_attention_is_the_same_function_and_can_be_undone() -> None:
    model, x = blip(), pixels()
    expected = model.vision_model(pixel_values=x).last_hidden_state
    kinds = [type(m) for m in model.modules()]
    seen: list[int] = []
    real = torch.nn.functional.scaled_dot_product_attention

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            seen.append(func is real)
            return func(*args, **(kwargs or {}))

    turbovlm.fuse_attention(model)
    with Count():
        fused = model.vision_model(pixel_values=x).last_hidden_state
    assert sum(seen) == 4
    torch.testing.assert_close(fused, expected, atol=2e-5, rtol=1e-4)
    with pytest.raises(errors.AlreadyApplied):
        turbovlm.fuse_attention(model)
    turbovlm.unfuse_attention(model)
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model.vision_model(pixel_values=x).last_hidden_state, expected)
    with pytest.raises(errors.NotApplied):
        turbovlm.unfuse_attention(model)
    with pytest.raises(errors.NothingToPatch, match="fused already"):
        turbovlm.fuse_attention(vit())


@torch.no_grad()
def test_blip2_generates() -> None:
    config = hf.Blip2Config(
        vision_config=dict(SIZES),
        qformer_config={
            "hidden_size": 48, "encoder_hidden_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 60,
        },
        text_config={
            "model_type": "opt", "hidden_size": 48, "ffn_dim": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 60, "word_embed_proj_dim": 48,
            "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
        num_query_tokens=8,
        image_token_index=59,
    )  # fmt: skip
    model: Any = wild(hf.Blip2ForConditionalGeneration(config))
    ids = torch.tensor([[59] * 8 + [3, 4]] * 2)
    options: dict[str, Any] = {"input_ids": ids, "max_new_tokens": 5, "min_new_tokens": 5}
    expected = model.generate(pixel_values=pixels(), **options)
    with turbovlm.applied(model, Merge(r=8)) as run:
        merged = model.generate(pixel_values=pixels(), **options)
        assert run.trace.tokens[-1] == 33
    assert merged.shape == expected.shape
    assert torch.equal(model.generate(pixel_values=pixels(), **options), expected)


@torch.no_grad()
def test_a_wanted_speedup_is_resolved_for_each_length() -> None:
    model: Any = vit(dynamic_img_size=True)
    for side in (64, 96):
        x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        plain = turbovlm.flops(model, x).macs
        with turbovlm.applied(model, Merge(speedup=1.25)) as run:
            model(x)
            tokens = run.trace.tokens
            merged = turbovlm.flops(model, x).macs
        assert tokens[0] == run.trace.start  # the first quarter of the blocks does not merge
        assert 1.15 < plain / merged < 1.35  # patches and head are not the blocks'
    with (
        pytest.raises(errors.ConfigError, match="out of reach"),
        turbovlm.applied(model, Merge(speedup=9)),
    ):
        model(x)


def test_training_remembers_no_more_than_what_lives() -> None:
    model: Any = vit().train()
    turbovlm.apply(model, Merge(r=5))
    memory = site_of(model).patch.memory
    for step in range(4):
        model(pixels(seed=step)).sum().backward()
    assert len(memory) <= 4  # one forward's blocks
    losses = [model(pixels(seed=step)).sum() for step in range(3)]
    assert len(memory) == 3 * 4  # three forwards are alive
    del losses
    with torch.no_grad():
        model(pixels())
    assert len(memory) <= 4
