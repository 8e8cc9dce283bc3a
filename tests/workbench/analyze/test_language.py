"""Visual tokens in the layers of a language model, against attention maps and hidden states."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.language.build import IMAGE
from tests.language.run import generated
from tests.language.zoo import CASES, LLAVA, Case
from turbovlm.errors import InputError, UnknownArchitecture
from turbovlm_workbench.analyze.language import analyze_language, has_visual_tokens

WHOLE = [case for case in CASES if not case.recurrent and "eager" in case.attention]


def literal(model: Any, prompt: dict[str, Any]) -> list[tuple[float, float, float]]:
    """Redundancy, concentration and mass, from whole maps, for a prompt of one sample."""
    model.set_attn_implementation("eager")
    out = model(**prompt, output_attentions=True, output_hidden_states=True)
    columns = (prompt["input_ids"][0] == IMAGE).nonzero()[:, 0]
    found = []
    for states, maps in zip(out.hidden_states[1:], out.attentions, strict=True):
        row = maps[0, :, -1].mean(0)[columns]
        top = row.sort(descending=True).values[: len(columns) // 4]
        x = torch.nn.functional.normalize(states[0, columns], dim=-1)
        pairs = x @ x.T
        n = len(columns)
        redundancy = (pairs.sum() - pairs.trace()) / (n * (n - 1))
        found.append((float(redundancy), float(top.sum() / row.sum()), float(row.sum())))
    return found


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
@torch.no_grad()
def test_layers_equal_the_whole_maps(case: Case) -> None:
    model: Any = case.build()
    prompts = [case.inputs(1, seed=seed) for seed in (0, 1)]
    found = analyze_language(model, lambda given: model(**given), prompts, case.name)
    eager: Any = case.build()
    expected = torch.tensor([literal(eager, prompt) for prompt in prompts]).mean(0)
    assert (found.model, found.samples) == (case.name, 2)
    assert found.visual == float((prompts[0]["input_ids"] == IMAGE).sum())
    assert len(found.layers) == len(expected)
    for layer, (redundancy, concentration, mass) in zip(found.layers, expected, strict=True):
        if layer is not found.layers[-1]:  # the host's last hidden state is normalised
            assert layer.redundancy == pytest.approx(float(redundancy), abs=1e-4)
        assert layer.concentration == pytest.approx(float(concentration), abs=1e-4)
        assert layer.mass == pytest.approx(float(mass), abs=1e-4)


@torch.no_grad()
def test_a_padded_batch_gives_the_mean_of_its_prompts() -> None:
    model: Any = LLAVA.build()
    batch = LLAVA.inputs(1, 1)
    assert (batch["attention_mask"] == 0).any()
    found = analyze_language(model, lambda given: model(**given), [batch])
    alone = []
    for row in range(2):
        real = batch["attention_mask"][row] == 1
        prompt = {
            "input_ids": batch["input_ids"][row][None, real],
            "attention_mask": batch["attention_mask"][row][None, real],
            "pixel_values": batch["pixel_values"][row : row + 1],
        }
        alone.append(analyze_language(model, lambda given: model(**given), [prompt]))
    for index, layer in enumerate(found.layers):
        for name in ("redundancy", "concentration", "mass"):
            values = [getattr(one.layers[index], name) for one in alone]
            assert getattr(layer, name) == pytest.approx(sum(values) / 2, abs=1e-4)


@torch.no_grad()
def test_only_the_prompt_of_an_answer_counts() -> None:
    model: Any = LLAVA.build()
    batch = LLAVA.inputs(1)
    found = analyze_language(model, lambda given: model(**given), [batch])
    written = analyze_language(model, lambda given: generated(model, given), [batch])
    assert written.samples == 1
    for one, other in zip(found.layers, written.layers, strict=True):
        assert vars(one) == pytest.approx(vars(other), abs=1e-5)


def test_what_cannot_be_analyzed_is_named() -> None:
    model: Any = LLAVA.build()

    def forward(given: dict[str, Any]) -> object:
        return model(**given)

    assert has_visual_tokens(model)
    assert not has_visual_tokens(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="no prompt with visual tokens"):
        analyze_language(model, forward, [LLAVA.inputs(0)])
    with pytest.raises(InputError, match="at least one batch"):
        analyze_language(model, forward, [])
    with pytest.raises(UnknownArchitecture, match="no vision-language model"):
        analyze_language(torch.nn.Linear(2, 2), forward, [])
    # a layer that raises leaves nothing behind
    broken = model.model.language_model.layers[1].mlp.register_forward_pre_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        analyze_language(model, forward, [LLAVA.inputs(1)])
    broken.remove()
    assert torch.overrides._get_current_function_mode() is None
    assert analyze_language(model, forward, [LLAVA.inputs(1)]).samples == 1


def _fail(*_: object) -> None:
    raise ZeroDivisionError
