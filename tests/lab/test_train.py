"""The training script, at a size that takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from turbovlm_lab import captioner, train
from turbovlm_lab.data import SceneDataset, collate
from turbovlm_lab.evaluate import evaluate_captioner
from turbovlm_lab.scenes import scene


@pytest.fixture(autouse=True)
def _threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def tiny() -> Any:
    torch.manual_seed(0)
    return captioner.build_captioner(width=32, blocks=1, heads=2, text_width=32)


def plan_for(out: Path, **settings: Any) -> train.CaptionerTraining:
    fixed: dict[str, Any] = {"steps": 2, "batch": 2, "check_scenes": 2, "warmup": 1, "out": out}
    return train.CaptionerTraining(**{**fixed, **settings})


@pytest.mark.parametrize("processes", [1, 2])
def test_two_steps_write_loadable_weights(tmp_path: Path, processes: int) -> None:
    model = tiny()
    before = model.vision_model.embeddings.position_embedding.detach().clone()
    seen: list[tuple[int, float]] = []
    train.train_captioner(
        plan_for(tmp_path, processes=processes),
        model,
        lambda step, done, _: seen.append((step, done)),
    )
    assert seen == [(1, 0.5), (2, 1.0)]
    assert not torch.equal(before, model.vision_model.embeddings.position_embedding)
    again, processor = captioner.load_captioner(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert len(captioner.write_captions(again, processor, [scene(0).image])) == 1
    record = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    assert (record["seed"], record["step"], record["scenes"]) == (0, 2, 4)


def test_a_run_ends_when_its_minutes_are_over(tmp_path: Path) -> None:
    steps: list[int] = []
    train.train_captioner(
        plan_for(tmp_path, steps=1000, minutes=1e-6, processes=1),
        tiny(),
        lambda step, *_: steps.append(step),
    )
    assert steps == [1]


def test_the_command_line_takes_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny()
    monkeypatch.setattr(captioner, "build_captioner", lambda: model)
    monkeypatch.setattr(
        train, "evaluate_captioner", lambda *given: evaluate_captioner(*given[:3], number=2)
    )
    train.main(["--steps", "1", "--processes", "1", "--out", str(tmp_path)])
    assert "best validation precision" in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").is_file()


def test_both_losses_fall_on_a_batch_seen_often() -> None:
    model = tiny()
    reader = train.PatchReader(32)
    batch = collate([SceneDataset("train", 4)[index] for index in range(4)])
    optimiser = torch.optim.AdamW([*model.parameters(), *reader.parameters()], lr=3e-3)
    history = []
    for _ in range(20):
        caption_loss, patch_loss = train.losses(model, reader, batch)
        (caption_loss + patch_loss).backward()
        optimiser.step()
        optimiser.zero_grad()
        history.append((caption_loss.item(), patch_loss.item()))
    assert history[-1][0] < history[0][0] - 1
    assert history[-1][1] < history[0][1] - 1
