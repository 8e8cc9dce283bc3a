"""MiniGPT-v2 at small sizes against literal loops, and at full size without weights."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import turbovlm
from turbovlm import Merge
from turbovlm.errors import ConfigError, InputError, UnsupportedInput
from turbovlm.maths.schedule import lengths
from turbovlm.measure import flops

pytest.importorskip("transformers")

from transformers import LlamaTokenizer

from turbovlm_workbench.paper.minigptv2 import (
    IMAGE_TOKEN,
    MiniGPTv2Config,
    MiniGPTv2ForConditionalGeneration,
)
from turbovlm_workbench.paper.minigptv2_prompt import SHORT_ANSWER, VIZWIZ, encode, prepare, prompt

EXAMPLE = Path(__file__).parents[3] / "examples" / "minigptv2.py"
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 120,
    "eos_token_id": None,
}
# two prompts of 5 and 7 tokens, the shorter one padded on the left
IDS = torch.tensor([[0, 0, 1, 9, IMAGE_TOKEN, 31, 12], [1, 1, IMAGE_TOKEN, 7, 7, 25, 40]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


def tiny(seed: int = 0, **vision: Any) -> MiniGPTv2ForConditionalGeneration:
    """Random weights large enough that errors show; 64 patch tokens, hence 16 for the Llama."""
    generator = torch.Generator().manual_seed(seed)
    config = MiniGPTv2Config(vision_config={**VISION, **vision}, text_config=TEXT)
    model = MiniGPTv2ForConditionalGeneration(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 1.2 / p[0].numel() ** 0.5 if p.dim() > 1 and "embed" not in name else 0.3
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(torch.randn(p.shape, generator=generator) * spread + centre)
    return model.eval()


def pixels(batch: int = 2, size: int = 64) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(7))


@cache
def full_size() -> MiniGPTv2ForConditionalGeneration:
    with torch.device("meta"):
        return MiniGPTv2ForConditionalGeneration(MiniGPTv2Config()).eval()


def literal_sequence(model: MiniGPTv2ForConditionalGeneration, row: int) -> Tensor:
    """(1, tokens, C): text, visual tokens and text of one unpadded prompt, side by side."""
    ids = IDS[row][MASK[row].bool()]
    at = ids.tolist().index(IMAGE_TOKEN)
    table = model.language_model.model.embed_tokens.weight
    visual = model.get_image_features(pixels()[row : row + 1])[0]
    return torch.cat((table[ids[:at]], visual, table[ids[at + 1 :]]))[None]


@torch.no_grad()
def literal_greedy(model: MiniGPTv2ForConditionalGeneration, row: int, steps: int) -> list[int]:
    embeds, found = literal_sequence(model, row), []
    for _ in range(steps):
        logits = model.language_model(inputs_embeds=embeds, use_cache=False).logits
        found.append(int(logits[0, -1].argmax()))
        new = model.language_model.model.embed_tokens.weight[found[-1]]
        embeds = torch.cat((embeds, new[None, None]), dim=1)
    return found


@torch.no_grad()
def test_four_neighbours_are_joined_in_order() -> None:
    model = tiny()
    tower = model.vision_model
    for name, p in tower.named_parameters():  # so small that the epsilon of the norm counts
        if any(part in name for part in ("embeddings", "projection", "fc2")):
            p.mul_(0.02)
    hidden = tower.encoder(inputs_embeds=tower.embeddings(pixels())).last_hidden_state
    mean, variance = hidden.mean(-1, keepdim=True), hidden.var(-1, keepdim=True, correction=0)
    norm = tower.post_layernorm
    hidden = (hidden - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
    expected = torch.empty(2, 16, 48)
    for image in range(2):
        for i in range(16):
            first = 1 + 4 * i  # position 0 is cls
            four = [hidden[image, first + k] for k in range(4)]
            expected[image, i] = model.projection.weight @ torch.cat(four) + model.projection.bias
    torch.testing.assert_close(model.get_image_features(pixels()), expected)


@pytest.mark.parametrize("r", [None, 4])
def test_greedy_generation_equals_a_literal_loop(r: int | None) -> None:
    model = tiny()
    unmerged = [literal_greedy(model, row, 8) for row in range(2)]
    if r is not None:
        turbovlm.apply(model, Merge(r=r))
    expected = [literal_greedy(model, row, 8) for row in range(2)]
    assert model.generate(pixels(), IDS, MASK, max_new_tokens=8).tolist() == expected
    assert len({*expected[0], *expected[1]}) > 4, "the weights are too small to tell anything"
    assert (expected != unmerged) == (r is not None)
    swapped = model.generate(pixels().flip(0), IDS, MASK, max_new_tokens=8)
    assert swapped.tolist() != expected, "the images do not matter"


def test_a_finished_answer_is_padded() -> None:
    model = tiny()
    expected = [literal_greedy(model, row, 6) for row in range(2)]
    eos = expected[1][2]
    assert eos not in expected[1][:2] + expected[0]
    found = model.generate(
        pixels(), IDS, MASK, max_new_tokens=6, eos_token_id=eos, pad_token_id=0
    ).tolist()
    assert found == [expected[0], [*expected[1][:3], 0, 0, 0]]


@torch.no_grad()
def test_forward_gives_logits_and_a_loss_over_text_only() -> None:
    model = tiny()
    labels = IDS.masked_fill(MASK == 0, -100)
    labels[0, 2] = -100  # nothing but padding stands before it
    output = model(pixels(), IDS, MASK, labels)
    assert output.logits.shape == (2, 7 - 1 + 16, 120)
    losses = []
    for row in range(2):
        sequence = literal_sequence(model, row)
        logits = model.language_model(inputs_embeds=sequence).logits[0]
        own = output.logits[row, -len(logits) :]
        torch.testing.assert_close(own, logits, atol=1e-4, rtol=1e-4)
        ids = IDS[row][MASK[row].bool()].tolist()
        at = ids.index(IMAGE_TOKEN)
        targets = [*ids[:at], *[None] * 16, *ids[at + 1 :]]
        for position, target in enumerate(targets[1:]):
            if target is not None:
                losses.append(-logits[position].log_softmax(-1)[target])
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_merging_shortens_the_sequence_and_leaves_no_trace() -> None:
    model = tiny()
    before = model(pixels(), IDS, MASK).logits
    turbovlm.apply(model, Merge(r=0))
    assert torch.equal(model(pixels(), IDS, MASK).logits, before)
    turbovlm.remove(model)
    with turbovlm.applied(model, Merge(r=4)) as run:
        merged = model(pixels(), IDS, MASK).logits
        assert run.trace.tokens[-1] == 1 + 64 - 3 * 4
    assert merged.shape == (2, 7 - 1 + (64 - 3 * 4) // 4, 120)
    assert (merged[:, -1] - before[:, -1]).abs().max() > 0.1
    assert torch.equal(model(pixels(), IDS, MASK).logits, before)


@torch.no_grad()
def test_saving_brings_the_setting_along(tmp_path: Path) -> None:
    model = turbovlm.apply(tiny(), Merge(r=4))
    model.save_pretrained(tmp_path)
    loaded = MiniGPTv2ForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.join == 4
    assert loaded.config.vision_config.image_size == 64
    unmerged = loaded(pixels(), IDS, MASK).logits
    turbovlm.apply(loaded)
    expected = model(pixels(), IDS, MASK).logits
    assert torch.equal(loaded(pixels(), IDS, MASK).logits, expected)
    assert unmerged.shape != expected.shape


LATE = (0,) * 38 + (4,)


@pytest.mark.parametrize(
    ("setting", "left", "fixes"),
    [
        (Merge(r=0), 1024, ()),
        (Merge(r=12), 556, ()),
        (Merge(r=16), 400, ()),
        (Merge(r=13), 517, ("r=12", "r=16")),
        (Merge(r=1), 985, ("r=0", "r=4")),
        (Merge(r=100, min_tokens=401), 400, ()),
        (Merge(r=16, min_tokens=403), 402, ("r=12", "min_tokens=405")),
        (Merge.paper(13, min_tokens=403), 517, ("r=12", "without the paper's preset")),
        (Merge(r=LATE), 1020, ()),
        (Merge(r=(*LATE[:-1], 6)), 1018, ("4 as the last", "8 as the last", "min_tokens=1021")),
        (Merge(ratio=0.01), 708, ()),
        (Merge(ratio=0.005), 863, ("min_tokens=865",)),
        (Merge(ratio=0.005, min_tokens=865), 864, ()),
    ],
)
def test_check_merge(setting: Merge, left: int, fixes: tuple[str, ...]) -> None:
    model = full_size()
    assert lengths(setting.schedule, tokens=1025, prefix=1, depth=39)[-1] - 1 == left
    if not fixes:
        model.check_merge(setting)
        return
    with pytest.raises(ConfigError, match=f"leaves {left} patch tokens") as caught:
        model.check_merge(setting)
    assert all(fix in str(caught.value) for fix in fixes), caught.value


def test_a_setting_that_does_not_fit_changes_nothing() -> None:
    model = tiny()
    with pytest.raises(ConfigError, match="r=0 or r=4"):
        turbovlm.apply(model, Merge(r=3))
    assert not hasattr(model.config, "turbovlm")
    turbovlm.apply(model, Merge(r=4))  # it is not patched yet


def test_a_tower_that_is_patched_itself_gives_every_token_back() -> None:
    model = tiny()
    host = model(pixels(), IDS, MASK).logits
    turbovlm.apply(model.vision_model, Merge(r=3))  # past check_merge: 55 would have no quarter
    merged = model(pixels(), IDS, MASK).logits
    assert merged.shape == host.shape
    assert not torch.allclose(merged, host, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": pixels(size=56)}, r"\(batch, 3, 64, 64\), got \(2, 3, 56, 56\)"),
        ({"pixel_values": pixels(1)}, "one row for each of the 1 images"),
        ({"input_ids": IDS.clamp(min=3)}, r"need.* one image placeholder .* \[0, 0\]"),
        ({"attention_mask": MASK[:, 1:]}, r"attention_mask \(2, 6\) must have the shape"),
        ({"attention_mask": MASK.flip(1)}, "pad on the left"),
    ],
)
def test_wrong_inputs_name_the_fix(change: dict[str, Tensor], message: str) -> None:
    inputs = {"pixel_values": pixels(), "input_ids": IDS, "attention_mask": MASK, **change}
    with pytest.raises(UnsupportedInput, match=message):
        tiny().generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": {**VISION, "image_size": 24}}, "9 patch tokens .* multiple of join 4"),
        ({"vision_config": {**VISION, "image_size": 60}}, "multiple of patch_size 8"),
        ({"join": 0}, "multiple of join 0"),
    ],
)
def test_wrong_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MiniGPTv2Config(**{"vision_config": VISION, "text_config": TEXT, **change})


def characters(**options: Any) -> LlamaTokenizer:
    """A LLaMA tokenizer whose vocabulary is one token per character."""
    tokens = ["<unk>", "<s>", "</s>", *map(chr, range(33, 127)), "▁"]
    return LlamaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, **options)


def test_prompts_are_the_published_ones() -> None:
    question = SHORT_ANSWER.format("How many cats?")
    assert prompt(question, "vqa") == (
        "<s>[INST] <Img><ImageHere></Img> [vqa] Based on the image, respond to this question with "
        "a short answer: How many cats? [/INST]"
    )
    assert "The question is 'Why?' Based" in prompt(VIZWIZ.format("Why?"), "vqa")
    assert prompt("hello") == "<s>[INST] <Img><ImageHere></Img> hello [/INST]"
    with pytest.raises(ConfigError, match=r"'count': use one of vqa, caption, .*detection"):
        prompt("cats", "count")


@pytest.mark.parametrize("legacy", [True, False])
def test_pieces_are_tokenised_on_their_own(legacy: bool) -> None:
    """Both kinds of LLaMA tokenizer that are about put a space before each piece here."""
    tokenizer = characters(legacy=legacy)

    def spell(text: str) -> list[int]:
        return [97 if c == " " else ord(c) - 30 for c in text]

    short, long = "hi", "[refer]"
    batch = encode(tokenizer, [prompt(short), prompt(long)])
    rows = [
        [1, 1, *spell(" [INST] <Img>"), IMAGE_TOKEN, *spell(f" </Img> {text} [/INST]")]
        for text in (short, long)
    ]
    assert batch["input_ids"].tolist() == [[0] * 5 + rows[0], rows[1]]
    assert batch["attention_mask"].tolist() == [[0] * 5 + [1] * len(rows[0]), [1] * len(rows[1])]


def test_images_and_prompts_become_inputs() -> None:
    images = [Image.new("RGB", (90, 40), (255, 0, 0)), Image.new("L", (64, 64), 128)]
    prompts = [prompt("what is this {<10><20><30><40>}", "identify"), prompt("cats", "detection")]
    inputs = prepare(characters(), images, prompts, size=64)
    red = (1 - 0.48145466) / 0.26862954  # CLIP's mean and deviation
    grey = (128 / 255 - 0.4578275) / 0.26130258
    torch.testing.assert_close(inputs["pixel_values"][0, 0], torch.full((64, 64), red))
    torch.testing.assert_close(inputs["pixel_values"][1, 1], torch.full((64, 64), grey))
    assert tiny().generate(**inputs, max_new_tokens=3).shape == (2, 3)
    with pytest.raises(InputError, match="2 images but 1 prompts"):
        prepare(characters(), images, prompts[:1], size=64)
    with pytest.raises(InputError, match="exactly one <ImageHere>, this one has 0"):
        encode(characters(), ["what is this?"])
    with pytest.raises(InputError, match="no prompts"):
        encode(characters(), [])


def test_the_example_runs_as_it_is_printed() -> None:
    command = [sys.executable, str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = {line[:8].strip(): line[8:] for line in done.stdout.splitlines()}
    assert answers["unmerged"].strip() != answers["r=12"].strip()
    assert "(245, 233, 221)" in done.stdout
    assert "use r=12 or r=16" in answers["r=13"]


def test_full_size_has_the_published_parameters() -> None:
    width, hidden = 1408, 6144
    block = 4 * width * width + 2 * width * hidden + (2 + 2 + 3 + 1 + 1) * width + hidden
    embeddings = width * (3 * 14 * 14 + 1) + width + 1025 * width
    counted = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in full_size().named_children()
    }
    assert counted == {
        "vision_model": 39 * block + embeddings + 2 * width,
        "projection": (4 * width + 1) * 4096,
        "language_model": 6_738_415_616,  # LLaMA-2-7B
    }


@pytest.mark.parametrize(
    ("r", "expected", "visual"), [(0, 1125.42, 256), (12, 849.78, 139), (16, 761.05, 100)]
)
def test_full_size_has_the_published_operations(r: int, expected: float, visual: int) -> None:
    model = full_size()
    image = torch.empty(1, 3, 448, 448, device="meta")
    ids = torch.empty(1, 30, dtype=torch.long, device="meta")
    turbovlm.apply(model, Merge(r=r))
    try:
        assert flops(model.vision_model, (image,)).gflops == pytest.approx(expected, rel=1e-3)
        with torch.no_grad():
            assert model(image, ids).logits.shape == (1, 29 + visual, 32000)
    finally:
        turbovlm.remove(model)
