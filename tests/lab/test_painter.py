"""The built-in painter: its parts, its scenes, and that its training trains and is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState

from turbovlm.errors import ModelError
from turbovlm_lab import painter, train_painter
from turbovlm_lab.data import caption_tokens
from turbovlm_lab.grammar import describe
from turbovlm_lab.looking import cell_of_tokens, guided_painting, words_to_attend
from turbovlm_lab.scenes import Object, layout, scene
from turbovlm_lab.train_painter import PainterTraining


def test_the_first_level_holds_a_thousand_tokens() -> None:
    torch.manual_seed(0)
    pipe: Any = painter.build_painter()
    seen: list[int] = []
    for module in pipe.unet.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            module.register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a large red circle at the top", num_inference_steps=1, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)
    assert set(seen) == {1024, 256, 64}
    count = sum(
        p.numel()
        for part in ("unet", "vae", "text_encoder")
        for p in getattr(pipe, part).parameters()
    )
    assert count * 2 < 20_000_000  # bytes in half precision
    with pytest.raises(ModelError, match="train_painter"):
        painter.load_painter("nowhere")


def test_subjects_are_scenes_of_few_objects() -> None:
    seeds = painter.subjects("validation", 0, 30)
    assert seeds == sorted(set(seeds))
    assert {len(layout(seed)) for seed in seeds} == {1, 2, 3}
    small = painter.shrink([scene(seeds[0]).image])
    assert small.shape == (1, 3, 64, 64)
    large = scene(seeds[0]).image.astype(np.float64).mean((0, 1)) / 127.5 - 1
    np.testing.assert_allclose(small.mean((0, 2, 3)).numpy(), large, atol=0.01)


def test_a_training_run_learns_and_goes_on(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    pipe: Any = painter.build_painter()
    told: list[str] = []
    plan = PainterTraining(
        autoencoder_minutes=0.02,
        minutes=0.05,
        batch=8,
        processes=1,
        check_scenes=1,
        warmup=1,
        out=tmp_path / "first",
    )

    def tell(step: int, done: float, text: str) -> None:
        told.append(text)

    train_painter.train_autoencoder(plan, pipe.vae, tell)
    batch = train_painter.training_scenes(plan, 1)
    _, missed = train_painter.painter_loss(pipe, batch, RandomState(0))
    missed.backward()  # what the attention is told reaches the text encoder
    reached = pipe.text_encoder.get_input_embeddings().weight.grad
    assert reached is not None
    assert reached.abs().sum() > 0
    pipe.text_encoder.zero_grad()
    pipe.unet.zero_grad()
    with torch.no_grad():
        before = float(train_painter.painter_loss(pipe, batch, RandomState(0))[0])
    train_painter.train_painter(plan, pipe, tell)
    with torch.no_grad():
        after = float(train_painter.painter_loss(pipe, batch, RandomState(0))[0])
    assert after < before
    record = json.loads((plan.out / "training.json").read_text())
    assert record["scenes"] == record["step"] * 8
    assert "precision" in told[-1]
    read = painter.load_painter(plan.out)
    assert read.unet.dtype == torch.float32
    assert read.vae.config.scaling_factor == pytest.approx(pipe.vae.config.scaling_factor)
    again = PainterTraining(
        minutes=0.001, batch=8, processes=1, check_scenes=1, out=tmp_path / "second", start=plan.out
    )
    first, other = (train_painter.training_scenes(p, 1) for p in (plan, again))
    assert {s.seed for s in first}.isdisjoint(s.seed for s in other)
    train_painter.train_painter(again, read, tell)
    torch.set_num_threads(threads)  # a process of a run takes one
    assert json.loads((again.out / "training.json").read_text())["before"] == record
    for path in (*again.out.rglob("*.json"), *painter.WEIGHTS.rglob("*.json")):
        assert "_name_or_path" not in path.read_text(), path


def test_where_cross_attention_is_told_to_look() -> None:
    objects = (
        Object("star", "red", "small", 0, 0, 0, 0, 30),
        Object("ring", "blue", "large", 1, 2, 0, 0, 60),
    )
    tokens = np.stack([caption_tokens(describe(objects)), caption_tokens("")])
    looks = words_to_attend(tokens, [objects, objects])
    words = tokens[0].tolist()
    comma = words.index(8)
    assert looks[0, 0].nonzero().flatten().tolist() == list(range(1, comma + 1))
    assert looks[0, 5].nonzero().flatten().tolist() == list(range(comma + 1, words.index(3)))
    assert looks[0, 4, 0]
    assert not looks[0, 4, 1 : words.index(3)].any()  # an empty cell
    assert looks[1, :, 0].all()
    assert not looks[1, :, tokens[1] >= 5].any()  # no caption, no word
    assert [int(cell_of_tokens(32)[at]) for at in ((0, 0), (31, 31), (16, 31))] == [0, 8, 5]


def test_told_attention_is_the_same_attention() -> None:
    torch.manual_seed(0)
    pipe: Any = painter.build_painter()
    looks = torch.zeros(2, 9, 12, dtype=torch.bool)
    looks[:, :, 0] = True
    latent, text = torch.randn(2, 4, 32, 32), torch.randn(2, 12, 128)
    with torch.no_grad():
        plain = pipe.unet(latent, 5, text).sample
        with guided_painting(pipe.unet, looks) as missed:
            torch.testing.assert_close(pipe.unet(latent, 5, text).sample, plain)
        assert torch.equal(pipe.unet(latent, 5, text).sample, plain)
    assert len(missed) == 7  # one in every block
    # fresh attention is about flat, and no cell is named: half of -log(1 / 12)
    assert float(torch.stack(missed).mean()) == pytest.approx(np.log(12) / 2, rel=0.1)
