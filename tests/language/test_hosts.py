"""Every host: fewer visual tokens are the same as hidden ones, and nothing else changes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import turbovlm
from tests.language import oracle
from tests.language.run import NEW, alone_of, generated, reduced, trace_of, without_cache
from tests.language.zoo import CASES, Case
from turbovlm.config import Merge, VisualTokens
from turbovlm.maths import select
from turbovlm.plug.swap import patched

every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def _merge_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "MERGE_SIMILARITY", 0.5)


@every_case
def test_all_tokens_kept_is_the_model_itself(case: Case) -> None:
    model, inputs = case.build(), case.inputs(1, 2)
    logits, words = model(**inputs).logits, generated(model, inputs)
    reduced(model, 1.0)
    assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(generated(model, inputs), words)


@pytest.mark.parametrize(
    ("case", "attention"),
    [pytest.param(c, a, id=f"{c.name}-{a}") for c in CASES for a in c.attention],
)
def test_dropped_is_hidden(case: Case, attention: str) -> None:
    model: Any = case.build()
    model.set_attn_implementation(attention)
    inputs = case.inputs(1, 2)
    whole = model(**inputs).logits
    short = reduced(model).model(**inputs).last_hidden_state
    trace = trace_of(model)
    assert trace.after == short.shape[1] < trace.before
    assert any((t.merged.sum() > len(t.kept)) for t in trace.images)
    assert torch.isfinite(model(**inputs).logits).all()
    difference = (model(**inputs).logits[:, -1] - whole[:, -1]).abs().max()
    turbovlm.remove(model)
    assert torch.equal(model(**inputs).logits, whole)
    expected = (oracle.shortened if case.recurrent else oracle.hidden_states)(model, inputs, trace)
    for row, rows in zip(short, expected, strict=True):
        torch.testing.assert_close(row[-len(rows) :], rows, atol=2e-5, rtol=1e-4)
    assert difference > 1e-2


@every_case
def test_merging_in_the_tower_as_well(case: Case) -> None:
    model: Any = case.build()
    inputs = case.inputs(1, 2)
    with turbovlm.applied(model, VisualTokens(keep=0.25)):
        only = model.model(**inputs).last_hidden_state
    with turbovlm.applied(model, Merge(r=6), VisualTokens(keep=0.25)) as run:
        short, trace = model.model(**inputs).last_hidden_state, run.visual
        assert run.trace.tokens[-1] < run.trace.start
        assert generated(model, inputs).shape == (2, NEW)
    with turbovlm.applied(model, Merge(r=6)):
        expected = (oracle.shortened if case.recurrent else oracle.hidden_states)(
            model, inputs, trace
        )
    for row, states in zip(short, expected, strict=True):
        torch.testing.assert_close(row[-len(states) :], states, atol=2e-5, rtol=1e-4)
    assert (short[:, -1] - only[:, -1]).abs().max() > 1e-3


@every_case
def test_generate_is_greedy_decoding_without_a_cache(case: Case) -> None:
    model, inputs = case.build(), case.inputs(1, 1)
    whole = generated(model, inputs)
    reduced(model)
    words = generated(model, inputs)
    assert torch.equal(words, without_cache(case, model, inputs))
    assert not torch.equal(words, whole)


@every_case
def test_left_padding_and_unequal_counts(case: Case) -> None:
    """Each sample of a batch is what it is alone."""
    model, batch = reduced(case.build()), case.inputs(1, 2)
    logits, words = model(**batch).logits[:, -1], generated(model, batch)
    for b, count in enumerate((1, 2)):
        alone = alone_of(case, batch, b, count)
        torch.testing.assert_close(model(**alone).logits[0, -1], logits[b], atol=2e-5, rtol=1e-4)
        assert torch.equal(generated(model, alone)[0], words[b])


@every_case
def test_beams(case: Case) -> None:
    model, batch = reduced(case.build()), case.inputs(1, 2)
    words = generated(model, batch, num_beams=3)
    for b, count in enumerate((1, 2)):
        alone = alone_of(case, batch, b, count)
        assert torch.equal(generated(model, alone, num_beams=3)[0], words[b])


@every_case
def test_a_prompt_without_images(case: Case) -> None:
    model, inputs = case.build(), case.inputs(0, 0)
    logits, words = model(**inputs).logits, generated(model, inputs)
    reduced(model)
    assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(generated(model, inputs), words)


@pytest.mark.parametrize("case", [c for c in CASES if c.static], ids=lambda c: c.name)
def test_a_static_cache(case: Case) -> None:
    model, inputs = reduced(case.build()), case.inputs(1, 2)
    words = generated(model, inputs)
    assert torch.equal(generated(model, inputs, cache_implementation="static"), words)


@every_case
def test_copies_and_pickles(case: Case) -> None:
    model, inputs = reduced(case.build()), case.inputs(1)
    # before a forward: transformers then adds hooks to towers that cannot be pickled
    read = pickle.loads(pickle.dumps(model))
    logits = model(**inputs).logits
    for other in (copy.deepcopy(model), read):
        assert any(patched(other))
        assert torch.equal(other(**inputs).logits, logits)
        turbovlm.remove(other)
        assert other(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]
    assert any(patched(model))


@every_case
def test_bfloat16(case: Case) -> None:
    model, inputs = case.build(), case.inputs(1)
    expected = reduced(model)(**inputs).logits
    half: Any = model.bfloat16()
    low = {n: v.bfloat16() if v.is_floating_point() else v for n, v in inputs.items()}
    logits = half(**low).logits
    assert logits.dtype == torch.bfloat16
    assert logits.shape == expected.shape
    assert torch.isfinite(logits).all()
    assert generated(half, low).shape == (1, NEW)
