"""How a reduced model can be called: several turns, threads, compilers, files, videos, errors."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import turbovlm
from tests.language import oracle
from tests.language.build import IMAGE, VIDEO, hf, smooth
from tests.language.run import NEW, generated, longer, reduced, trace_of, without_cache
from tests.language.zoo import CASES, GEMMA3, LLAVA, NEXT, QWEN25, Case
from turbovlm.config import Merge
from turbovlm.config.visual_tokens import VisualTokens
from turbovlm.errors import ConfigError, UnknownArchitecture, UnsuitableBlock, UnsupportedInput
from turbovlm.plug.swap import patched

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.no_grad():
        yield


def held(cache: Any) -> int:
    """Tokens that a layer without a window holds."""
    return max(layer.keys.shape[2] for layer in cache.layers)


@pytest.mark.parametrize("case", [LLAVA, QWEN25, GEMMA3], ids=lambda c: c.name)
def test_two_turns_with_one_cache(case: Case) -> None:
    model, inputs = reduced(case.build()), case.inputs(1, 1)
    first = model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True
    )
    new = first.sequences[:, inputs["input_ids"].shape[1] :]
    question = torch.randint(3, 99, (2, 4), generator=torch.Generator().manual_seed(5))
    second = longer(case, inputs, torch.cat([new, question], 1))
    expected = without_cache(case, model, second)
    text = {n: v for n, v in second.items() if n not in case.pixels((1, 1))}
    again = model.generate(**text, cache=first.cache, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(again[:, -NEW:], expected)
    trace = trace_of(model)
    assert held(first.cache) == again.shape[1] - 1 - (trace.before - trace.after)


def test_an_image_in_the_second_turn() -> None:
    model = reduced(LLAVA.build())
    whole = LLAVA.inputs(2)
    ids = whole["input_ids"]
    cut = 2 + 38 + 1  # words, the first image with its marks, a word
    first = {n: v[:, :cut] for n, v in whole.items() if n != "pixel_values"}
    out = model(**first, pixel_values=whole["pixel_values"][:1])
    assert out.cache.get_seq_length() == cut
    out = model(
        input_ids=ids[:, cut:],
        attention_mask=whole["attention_mask"],
        pixel_values=whole["pixel_values"][1:],
        cache=out.cache,
    )
    assert out.cache.get_seq_length() == ids.shape[1]
    assert held(out.cache) == ids.shape[1] - 2 * 27
    torch.testing.assert_close(out.logits[:, -1], model(**whole).logits[:, -1])


def test_a_plain_cache_can_get_an_image() -> None:
    model = reduced(LLAVA.build())
    whole = LLAVA.inputs(1)
    out = model(input_ids=whole["input_ids"][:, :2], attention_mask=whole["attention_mask"][:, :2])
    rest = whole | {"input_ids": whole["input_ids"][:, 2:]}
    logits = model(**rest, cache=out.cache).logits[:, -1]
    torch.testing.assert_close(logits, model(**whole).logits[:, -1])


def test_steps_by_hand_need_no_positions_and_no_mask() -> None:
    model = reduced(LLAVA.build())
    inputs = LLAVA.inputs(1, 1)
    inputs = {n: v[:1] for n, v in inputs.items()}
    words, out = [], model(**{n: v for n, v in inputs.items() if n != "attention_mask"})
    for _ in range(NEW):
        words.append(out.logits[:, -1:, :99].argmax(-1))
        out = model(input_ids=words[-1], cache=out.cache)
    assert torch.equal(torch.cat(words, 1), without_cache(LLAVA, model, inputs))


def test_a_cache_can_be_copied_and_goes_back_to_its_prompt() -> None:
    """Copies of a filled cache answer several questions about one image."""
    model, inputs = reduced(LLAVA.build()), LLAVA.inputs(1)
    cache = model(**inputs).cache
    for seed in (1, 2):
        question = torch.randint(3, 99, (1, 4), generator=torch.Generator().manual_seed(seed))
        asked = longer(LLAVA, inputs, question)
        logits = model(
            input_ids=question,
            attention_mask=asked["attention_mask"],
            cache=copy.deepcopy(cache),
        ).logits[:, -1]
        torch.testing.assert_close(logits, model(**asked).logits[:, -1])
    step = model(input_ids=torch.tensor([[7]]), cache=cache).logits
    cache.crop(-1)
    assert torch.equal(model(input_ids=torch.tensor([[7]]), cache=cache).logits, step)
    with pytest.raises(UnsupportedInput, match="new cache"):
        cache.crop(-2)
    cache.reset()
    assert cache.get_seq_length() == 0


def test_threads_do_not_meet() -> None:
    model = reduced(LLAVA.build())
    prompts = [LLAVA.inputs(n, seed=n) for n in (1, 2, 0, 1)]
    expected = [generated(model, p) for p in prompts]
    got: dict[int, Tensor] = {}

    def run(i: int) -> None:
        with torch.no_grad():
            got[i] = generated(model, prompts[i])

    for _ in range(2):
        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(got[i], expected[i]) for i in range(len(prompts)))


def test_sampling_several_answers() -> None:
    model, inputs = reduced(QWEN25.build()), QWEN25.inputs(2, 1)
    torch.manual_seed(0)
    out = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=3)
    assert out.shape[0] == 6
    assert [len(i.kept) for i in trace_of(model).images] == [4, 3] * 3 + [4] * 3


@pytest.mark.parametrize("case", [LLAVA, QWEN25], ids=lambda c: c.name)
def test_a_compiled_language_model_has_no_break(case: Case) -> None:
    model, inputs = reduced(case.build()), case.inputs(1)
    expected = model(**inputs, use_cache=False).logits
    oracle.language_of(model).compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(model(**inputs, use_cache=False).logits, expected)
    assert expected.shape[1] < inputs["input_ids"].shape[1]


def test_a_model_compiled_whole() -> None:
    model, inputs = reduced(LLAVA.build()), LLAVA.inputs(1)
    expected = model(**inputs, use_cache=False).logits
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**inputs, use_cache=False).logits, expected)


def test_a_static_cache_with_compiled_steps() -> None:
    model, inputs = reduced(LLAVA.build()), LLAVA.inputs(1, 2)
    expected = generated(model, inputs)
    compiler = hf.CompileConfig(backend="eager", mode=None)
    compiler._compile_all_devices = True  # transformers compiles on accelerators alone
    words = generated(model, inputs, cache_implementation="static", compile_config=compiler)
    assert hasattr(model, "_compiled_call")
    assert torch.equal(words, expected)


def test_the_setting_is_stored_with_the_model(tmp_path: Path) -> None:
    model, inputs = reduced(LLAVA.build(), keep=0.5, merge=False), LLAVA.inputs(1)
    model.save_pretrained(tmp_path)
    read = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert not any(patched(read))
    told = read.config.turbovlm
    assert VisualTokens.from_dict(told) == VisualTokens(keep=0.5, merge=False)
    turbovlm.apply(read)
    torch.testing.assert_close(read(**inputs).logits, model(**inputs).logits)
    turbovlm.remove(read)
    assert read.config.turbovlm == told  # as it was loaded


def test_two_settings_are_stored_and_come_back(tmp_path: Path) -> None:
    model, inputs = cast(Any, LLAVA.build()), LLAVA.inputs(1)
    plain = model(**inputs).logits
    turbovlm.apply(model, Merge(r=6))
    turbovlm.apply(model, VisualTokens(keep=0.5))  # beside what is applied already
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    read = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    turbovlm.apply(read)
    torch.testing.assert_close(read(**inputs).logits, expected)
    turbovlm.remove(model)
    assert torch.equal(model(**inputs).logits, plain)
    assert not hasattr(model.config, "turbovlm")
    turbovlm.apply(model, Merge(r=6), VisualTokens(keep=0.5))
    assert torch.equal(model(**inputs).logits, expected)


def test_features_computed_beforehand() -> None:
    model, inputs = reduced(NEXT.build()), NEXT.inputs(2)
    expected = model(**inputs).logits
    pixels = {n: inputs.pop(n) for n in ("pixel_values", "image_sizes")}
    features = model.model.get_image_features(**pixels)
    assert torch.equal(model(**inputs, mm_encoder_outputs={"image": features}).logits, expected)
    for feature in features.pooler_output:
        del feature.turbo_picture
    with pytest.raises(UnsupportedInput, match="pixel_values"):
        model(**inputs, mm_encoder_outputs={"image": features})


def test_newlines_stay() -> None:
    model, inputs = reduced(NEXT.build(), keep=4), NEXT.inputs(1)
    features = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    newline = (features.pooler_output[0] == model.model.image_newline).all(1).nonzero()[:, 0]
    model(**inputs)
    (image,) = trace_of(model).images
    assert len(newline) == 4
    assert set(newline.tolist()) < set(image.kept.tolist())
    assert len(image.kept) == 4 + len(newline)
    assert image.place is not None
    # the thumbnail keeps some, and the tiles do
    assert set(image.place[image.kept, 0].tolist()) == {0.0, 1.0}
    assert image.place[newline, 1].tolist() == [0.125, 0.375, 0.625, 0.875]


def video_of(case: Case, frames: int) -> dict[str, Any]:
    """A prompt with one video of ``frames`` frames of 4 x 4 tokens."""
    if case.name == "llava_onevision":
        ids = torch.tensor([[5, *[VIDEO] * (frames * 4 + 1), 6, 7]])
        pixels: dict[str, Any] = {"pixel_values_videos": smooth(1, frames, 3, 48, 48)}
    else:
        grid = torch.tensor([[frames, 8, 8]])
        one = [102, *[VIDEO] * 16, 103]
        inside = [102, *[VIDEO] * 16 * frames, 103]
        body = inside if case.name in ("qwen2", "qwen2.5") else one * frames
        ids = torch.tensor([[5, *body, 6, 7]])
        pixels = {
            "pixel_values_videos": smooth(frames * 64, 3, 16, 8).flatten(1),
            "video_grid_thw": grid,
        }
        if case.name == "glm4v":
            ids = torch.where(ids == VIDEO, IMAGE, ids)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    if case.types is not None:
        given[case.types] = 2 * ((ids == VIDEO) | (ids == IMAGE)).long()
    return given


VIDEOS = ("llava_onevision", "qwen2", "qwen2.5", "qwen3", "qwen3.5", "glm4v")


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_keep_a_token_of_each_frame(name: str) -> None:
    case = BY_NAME[name]
    model, inputs = reduced(case.build(), 0.01), video_of(case, 3)
    short = model.model(**inputs).last_hidden_state
    trace = trace_of(model)
    (image,) = trace.images
    assert image.place is not None
    newline = name == "llava_onevision"
    assert len(image.kept) == 3 + newline
    assert set(image.place[image.kept, 0].tolist()) == {0.0, 1.0, 2.0}
    words = generated(model, inputs)
    assert torch.equal(words, without_cache(case, model, inputs))
    turbovlm.remove(model)
    expected = (oracle.shortened if case.recurrent else oracle.hidden_states)(model, inputs, trace)
    torch.testing.assert_close(short[0], expected[0], atol=2e-5, rtol=1e-4)


def test_an_empty_picture_needs_fewer_tokens() -> None:
    model: Any = LLAVA.build()
    inputs = LLAVA.inputs(1, 1)
    inputs["pixel_values"][1] = 0.0
    inputs["pixel_values"][0] = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(3))
    model.model.vision_tower.embeddings.position_embedding.weight.zero_()
    reduced(model, None, coverage=0.9)
    short = model.model(**inputs).last_hidden_state
    trace = trace_of(model)
    many, few = (len(i.kept) for i in trace.images)
    assert few < many < 36
    turbovlm.remove(model)
    expected = oracle.hidden_states(model, inputs, trace)
    for row, states in zip(short, expected, strict=True):
        torch.testing.assert_close(row[-len(states) :], states, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["divprune", "norm", "uniform", "random"])
def test_baselines_keep_the_same_number(method: str) -> None:
    model, inputs = reduced(LLAVA.build()), LLAVA.inputs(1, 2)
    ours = model(**inputs).logits
    kept = [i.kept.tolist() for i in trace_of(model).images]
    turbovlm.remove(model)
    theirs = reduced(model, method=method)(**inputs).logits
    assert theirs.shape == ours.shape
    assert [i.kept.tolist() for i in trace_of(model).images] != kept


def refused(model: Any, match: str, kind: type[Exception] = UnsupportedInput, **given: Any) -> None:
    with pytest.raises(kind, match=match):
        model(**given)


def test_calls_that_cannot_be_right_are_refused() -> None:
    model, inputs = reduced(LLAVA.build()), LLAVA.inputs(1)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    expected = model(**inputs).logits
    refused(model, "labels", labels=ids, **inputs)
    refused(model, "logits_to_keep", logits_to_keep=torch.tensor([3]), **inputs)
    refused(model, "no image was given", input_ids=ids, attention_mask=mask)
    embeddings = model.get_input_embeddings()(ids)
    refused(model, "pass input_ids", inputs_embeds=embeddings, attention_mask=mask)
    refused(model, "position_ids has 3", position_ids=torch.arange(3)[None], **inputs)
    short = {**inputs, "attention_mask": mask[:, 1:]}
    refused(model, "attention mask has", **short)
    features = model.model.get_image_features(inputs["pixel_values"])
    refused(
        model,
        "dictionary",
        input_ids=ids,
        attention_mask=mask,
        mm_encoder_outputs=features.pooler_output[0],
    )
    for option in ({"prompt_lookup_num_tokens": 2}, {"assistant_model": LLAVA.build()}):
        with pytest.raises(UnsupportedInput, match="assisted"):
            generated(model, inputs, **option)
    with pytest.raises(UnsupportedInput, match="prefill_chunk_size"):
        generated(model, inputs, prefill_chunk_size=8)
    model.train()
    with torch.enable_grad():
        refused(model, r"model.eval\(\)", **inputs)
    model.eval()
    assert torch.equal(model(**inputs).logits, expected)
    cache = model(**inputs).cache
    refused(model, "attention mask has", input_ids=ids[:, :1], attention_mask=mask, cache=cache)
    assert cache.get_seq_length() == ids.shape[1]
    step = {"input_ids": ids[:, :1], "cache": cache}
    torch.testing.assert_close(
        model(**step).logits[:, -1],
        model(**longer(LLAVA, inputs, ids[:, :1])).logits[:, -1],
    )


def test_a_cache_of_another_kind_is_refused() -> None:
    """Continuous batching lays out the samples of a batch by itself."""

    class Pages:
        def get_seq_length(self) -> int:
            return 0

    refused(reduced(LLAVA.build()), "Pages lays out", cache=Pages(), **LLAVA.inputs(1))


def test_more_tokens_than_there_are() -> None:
    model, inputs = reduced(LLAVA.build(), keep=37), LLAVA.inputs(1)
    refused(model, "more tokens than the 36", ConfigError, **inputs)
    turbovlm.remove(model)
    model = reduced(LLAVA.build(), keep=36)
    assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_fewer_tokens_than_frames() -> None:
    case = BY_NAME["qwen2.5"]
    model = reduced(case.build(), keep=2)
    refused(model, "3 frames", ConfigError, **video_of(case, 3))
    turbovlm.remove(model)
    reduced(model, keep=2, floor=False)(**video_of(case, 3))
    assert [len(i.kept) for i in trace_of(model).images] == [2]


def test_models_that_cannot_be_reduced_stay_as_they_are() -> None:
    text = hf.LlamaForCausalLM(hf.LlamaConfig(**{**_TINY, "vocab_size": 64}))
    blip = hf.Blip2ForConditionalGeneration(
        hf.Blip2Config(
            vision_config={**_TINY, "image_size": 16, "patch_size": 8},
            qformer_config={**_TINY, "vocab_size": 64, "encoder_hidden_size": 16},
            text_config={**_TINY, "vocab_size": 64, "model_type": "opt", "ffn_dim": 16},
        )
    )
    for model, kind, match in (
        (text, UnknownArchitecture, "known are Gemma3Model, .*LlavaModel"),
        (blip, UnsuitableBlock, "32 queries"),
    ):
        with pytest.raises(kind, match=match):
            turbovlm.apply(model, VisualTokens(keep=0.5))
        assert not any(patched(model))


_TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def test_the_model_without_its_head() -> None:
    model: Any = LLAVA.build()
    inputs = LLAVA.inputs(1)
    short = reduced(model.model)(**inputs).last_hidden_state
    assert short.shape[1] == inputs["input_ids"].shape[1] - 27
    torch.testing.assert_close(model.lm_head(short), model(**inputs).logits)


def test_removing_restores_the_classes() -> None:
    model = LLAVA.build()
    before = [type(m) for m in model.modules()]
    keys = list(model.state_dict())
    reduced(model)
    assert [type(m) for m in model.modules()] != before
    assert list(model.state_dict()) == keys
    assert isinstance(model, hf.LlavaForConditionalGeneration)
    turbovlm.remove(model)
    assert [type(m) for m in model.modules()] == before
