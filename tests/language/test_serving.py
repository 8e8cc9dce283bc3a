"""The manual's page on serving runs, and what it says of continuous batching is so."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import turbovlm

transformers = pytest.importorskip("transformers")

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_the_page_runs_and_batches_answer_as_single_prompts() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    images, texts, together = names["images"], names["texts"], names["together"]
    alone = [
        names["answers"]([image], [text])[0] for image, text in zip(images, texts, strict=True)
    ]
    assert together == alone
    assert len(set(together)) >= 3
    assert [one["generated_text"].strip() for one in names["found"]] == together
    inputs = names["processor"](images=images, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        short = names["model"](**inputs).logits
        turbovlm.remove(names["model"])
        whole = names["model"](**inputs).logits
    assert short.shape[1] == whole.shape[1] - 98
    assert not torch.allclose(short[:, -1], whole[:, -1], atol=1e-3)


@pytest.fixture
def blind() -> Any:
    """Answers of continuous batching to a prompt with image tokens, and the model."""
    from turbovlm_lab import vlm

    model, processor = vlm.load_vlm()
    ids = processor.tokenizer("<image>" * 196 + "is there a large blue cross?")["input_ids"]

    def run() -> Any:
        return model.generate_batch(
            [ids],
            generation_config=transformers.GenerationConfig(
                max_new_tokens=2, do_sample=False, pad_token_id=0, eos_token_id=3
            ),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                num_blocks=16, page_size=32, max_batch_tokens=256
            ),
        )["req_0"]

    return model, run


def test_continuous_batching_sees_no_image(blind: Any) -> None:
    """If this fails, transformers has learned it: the page and the table are to be rewritten."""
    model, run = blind
    plain = run()
    assert plain.generated_tokens
    with turbovlm.applied(model, turbovlm.Merge(r=8), record=False):
        assert run().generated_tokens == plain.generated_tokens
    logging.disable(logging.CRITICAL)  # it prints the error twice, with its traceback
    with turbovlm.applied(model, turbovlm.VisualTokens(keep=0.25), record=False):
        refused = run()
    logging.disable(logging.NOTSET)
    assert refused.generated_tokens == []
    assert "logits_to_keep names positions of the whole prompt" in refused.error


def test_the_server_keeps_continuous_batching_for_text_models() -> None:
    serving = pytest.importorskip("transformers.cli.serving.utils")
    state = serving.GenerationState(continuous_batching=True)
    config = transformers.LlavaConfig()
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config)
    assert not state.use_continuous_batching(model, serving.Modality.VLM)
    assert state.use_continuous_batching(model, serving.Modality.LLM)
