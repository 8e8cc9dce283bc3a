"""The captioner that ships with the package: real weights, real generate."""

from __future__ import annotations

from typing import Any

import pytest

from turbovlm.errors import MissingExtra, ModelError
from turbovlm_lab.scenes import scene, seed_of_split

transformers = pytest.importorskip("transformers")

from turbovlm_lab import captioner  # noqa: E402
from turbovlm_lab.evaluate import baselines, evaluate_captioner, main  # noqa: E402

UNSEEN = 64


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return captioner.load_captioner()


def test_the_files_are_small_and_hold_safetensors() -> None:
    files = list(captioner.WEIGHTS.iterdir())
    assert "model.safetensors" in {file.name for file in files}
    assert not {file.suffix for file in files} & {".bin", ".pt", ".pkl"}
    assert sum(file.stat().st_size for file in files) < 12_000_000


def test_plain_from_pretrained_loads_it() -> None:
    model = transformers.BlipForConditionalGeneration.from_pretrained(captioner.WEIGHTS)
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}
    processor = transformers.AutoProcessor.from_pretrained(captioner.WEIGHTS)
    assert type(processor) is transformers.BlipProcessor


def test_it_has_the_promised_size(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    assert not model.training
    vision = model.config.vision_config
    assert vision.num_hidden_layers >= 8
    images = processor(images=[scene(0).image], return_tensors="pt")["pixel_values"]
    assert images.shape == (1, 3, 224, 224)
    assert model.vision_model(images).last_hidden_state.shape[1] >= 197


def test_captions_of_unseen_scenes_are_right(loaded: tuple[Any, Any]) -> None:
    score = evaluate_captioner(*loaded, "test", UNSEEN)
    assert score.captions == UNSEEN
    assert score.precision >= 0.9
    assert score.recall >= 0.9
    assert score.count >= 0.9
    assert min(score.by_attribute.values()) >= 0.85
    trivial = max(row.precision for row in baselines("test", UNSEEN).values())
    assert score.precision > trivial + 0.3


def test_a_caption_can_be_read_and_does_not_depend_on_its_batch(loaded: tuple[Any, Any]) -> None:
    images = [scene(seed_of_split("test", index)).image for index in range(3)]
    together = captioner.write_captions(*loaded, images)
    alone = captioner.write_captions(*loaded, images, batch_size=1)
    assert together == alone
    assert all(text.startswith("a ") for text in together)


def test_evaluate_prints_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--scenes", "4"])
    shown = capsys.readouterr().out
    assert "captioner" in shown
    assert "trivial, 5" in shown


def test_a_folder_without_weights_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match=r"turbovlm_lab\.train"):
        captioner.load_captioner(tmp_path)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, extra: str) -> None:
        raise MissingExtra(module, extra)

    monkeypatch.setattr(captioner, "require", missing)
    for call in (
        captioner.load_captioner,
        captioner.build_captioner,
        captioner.build_caption_processor,
    ):
        with pytest.raises(MissingExtra, match="hf"):
            call()
